// Package docs holds the pages that a program must have with it on the day when
// nothing else is left: the format, and how to restore without Holdfast.
package docs

import "embed"

// Escrow are the pages of an escrow kit, by file name.
//
//go:embed break-glass.py break-glass.md format.md
var Escrow embed.FS
