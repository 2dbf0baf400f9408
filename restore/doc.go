// Package restore plans restores and carries them out: a cluster to a moment,
// beside production, complete or saying that it is not.
//
// A plan is a pure function of what the catalog holds; it says before anything
// moves where recovery must end, and its hash is what people approve. The act
// fetches, replays under standby.signal so that PostgreSQL never ends recovery by
// itself, compares what was replayed with the expected end, promotes, replays the
// tombstones of deleted projects in a closed room, and only then opens. A standby of
// live is left in recovery instead, and admits no reader before it has replayed what
// took those projects away.
//
// Files come from packs by page maps, each frame checked, each byte written once,
// in memory that does not grow with the cluster. Over a directory that holds the
// cluster already, or half a restore, only blocks that differ are fetched: 64-bit
// keyed digests say which.
//
// It never imports snapshot: reading must work on the day writing is broken. It
// holds a reader that can neither write nor delete. It never answers "absent" for
// what a plan names, never promotes short of the expected end, and leaves a
// directory that cannot start (no pg_control, no postgresql.conf) when it fails
// or is killed half-way.
package restore
