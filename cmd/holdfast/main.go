// Command holdfast keeps PostgreSQL recoverable and proves it: the daemon, and
// the command with which people and PostgreSQL itself speak to it.
//
// It wires the packages together and decides nothing of theirs. Every command
// ends with one of the exit codes of docs/commands.md and, where it failed, says
// on standard error what was being done, to what, why it failed and what to do
// next. It never prints a secret.
package main

import (
	"os"

	_ "github.com/holdfast-dr/holdfast/cmd/holdfast/early" // ends here when archive_command is all there is to do
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
