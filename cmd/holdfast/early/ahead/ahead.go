// Package ahead is to package internal/thin/ahead what early is to thin.
package ahead

import (
	"os"

	"github.com/holdfast-dr/holdfast/internal/thin/ahead"
)

func init() {
	if code, done := ahead.Main(os.Args[1:]); done {
		os.Exit(code)
	}
}
