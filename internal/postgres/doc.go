// Package postgres speaks to a PostgreSQL server: it connects, asks for facts,
// starts and stops base backups, and speaks the replication protocol (base
// backups, slots, WAL, timeline histories) on pgx's connection. It writes nothing
// to disk, runs no program, and never decides what a backup or an archive is worth:
// it hands over what the server said, whole and in order, or an error. An error
// leaves the connection unusable unless its comment says otherwise; a password is
// in none of them. PostgreSQL 13 to 18.
package postgres
