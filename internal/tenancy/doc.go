// Package tenancy knows what belongs to a project, which is rows, a schema or a
// database: it finds, counts, copies and deletes it in whatever database it is given,
// puts what a restored copy has into live's place, and tells whether a live one still
// holds any.
//
// What belongs to a project that is rows follows from the database's own foreign keys, read
// from its catalogue at that moment: everything that refers, directly or not,
// to the project's row in the root table. A reference that the schema clears
// (ON DELETE SET NULL, SET DEFAULT) is cleared, and the row stays; another
// project's root row goes only where the schema cascades to it. A schema and a database
// are all that is in them; a schema that something outside depends on is not dropped in
// live.
//
// It reads no backup and knows no zone. It never guesses: a table that is not
// reached by a foreign key is reported as not covered and left alone, and where
// the root table or its key is missing it fails and changes nothing. A deletion
// is one transaction that looks again before it commits. Keys of projects are
// personal data: they appear in no error and, in records, only as a MAC.
package tenancy
