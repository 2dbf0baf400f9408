// Package early runs the commands of package thin before the program that they
// are part of is initialised.
//
// PostgreSQL starts `wal push` once for each segment. Initialising all that the
// program imports takes several times what the command itself takes. Go
// initialises packages in the order of their import paths, as soon as what they
// import is initialised: this one imports so little that its turn comes near the
// beginning, and where thin has done everything the program ends there.
package early

import (
	"os"

	"github.com/holdfast-dr/holdfast/internal/thin"
	"github.com/holdfast-dr/holdfast/internal/thin/ahead"
)

func init() {
	if code, done := thin.Main(os.Args[1:], os.Stderr); done {
		os.Exit(code)
	}
	if code, done := ahead.Main(os.Args[1:]); done {
		os.Exit(code)
	}
}
