// Package ahead is the spool of segments that were fetched ahead of a standby's
// recovery, and `wal fetch` of one that is in it. It is thin in the sense of package
// thin.
package ahead
