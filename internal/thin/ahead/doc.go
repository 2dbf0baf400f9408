// Package ahead is the spool of segments that were fetched ahead of a standby's
// recovery, and `wal fetch` of one that is in it. It is thin in the sense of package
// thin, and apart from it because SHA-256 is initialised later than what a push
// needs.
package ahead
