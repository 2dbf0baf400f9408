// Package thin is what archive_command and restore_command run where somebody
// answers on a socket: `wal push` to a daemon, `wal fetch --room` to a restore; and
// `wal fetch` of a segment that was fetched ahead, with the spool for those.
//
// PostgreSQL starts such a command for each segment, so it must cost next to
// nothing. The package imports little, reads of the configuration no more than
// the socket, and runs before the rest of the program is initialised (see
// cmd/holdfast/early). It handles what goes well; whatever is out of the ordinary
// it leaves to the commands themselves, with their checks and their messages. A
// push is idempotent, so doing it again costs time and nothing else.
package thin
