//go:build !crashpoints

package main

import "github.com/holdfast-dr/holdfast/internal/zone"

// The places at which the crash test kills the daemon: nothing, but in the
// program that the test builds for itself (crash_points.go).

func crashDriver(d zone.Driver) zone.Driver { return d }

func crashPoint(string, any) {}
