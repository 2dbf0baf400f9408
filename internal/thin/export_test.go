package thin

import "os"

// SocketOf is tested beside configs.
var SocketOf = socketOf

// SetExit replaces os.Exit until restored.
func SetExit(f func(int)) (restore func()) {
	exit = f
	return func() { exit = os.Exit }
}
