package datadir

import (
	"path"
	"strconv"
	"strings"
)

// RelationFile is what the path of a relation's file says.
type RelationFile struct {
	Tablespace uint32 // OID; 1663 pg_default, 1664 pg_global
	Database   uint32 // OID; 0 in global
	Node       uint32 // relfilenode
	Fork       string // main, fsm, vm, init
	Segment    uint32 // which gigabyte of the relation
}

// ParseRelation reads a path relative to the data directory; ok is false for what
// is no relation's file. Temporary relations are none.
func ParseRelation(p string) (r RelationFile, ok bool) {
	dir, name := path.Split(p)
	space, database, ok := relationDir(strings.TrimSuffix(dir, "/"))
	if !ok {
		return RelationFile{}, false
	}
	r, ok = parseName(name)
	r.Tablespace, r.Database = space, database
	return r, ok
}

// relationDir says of which tablespace and database a directory holds relations:
// global, base/<db>, pg_tblspc/<oid>/PG_<version>/<db>.
func relationDir(dir string) (space, database uint32, ok bool) {
	parts := strings.Split(dir, "/")
	switch {
	case dir == "global":
		return GlobalTablespace, 0, true
	case len(parts) == 2 && parts[0] == "base":
		database, ok = number(parts[1])
		return DefaultTablespace, database, ok
	case len(parts) == 4 && parts[0] == "pg_tblspc" && strings.HasPrefix(parts[2], "PG_"):
		space, ok1 := number(parts[1])
		database, ok2 := number(parts[3])
		return space, database, ok1 && ok2
	}
	return 0, 0, false
}

// parseName reads <node>[_fork][.segment]
// (parse_filename_for_nontemp_relation in src/backend/storage/file/reinit.c).
func parseName(name string) (r RelationFile, ok bool) {
	base, segment, dotted := strings.Cut(name, ".")
	if dotted {
		if r.Segment, ok = number(segment); !ok || r.Segment == 0 {
			return r, false
		}
	}
	node, fork, forked := strings.Cut(base, "_")
	r.Fork = Main
	if forked {
		if fork != FSM && fork != VM && fork != Init {
			return r, false
		}
		r.Fork = fork
	}
	r.Node, ok = number(node)
	return r, ok
}

// temporary says whether a name is that of a temporary relation, t<backend>_<node>…
// (looks_like_temp_rel_name in src/backend/storage/file/fd.c).
func temporary(name string) bool {
	rest, ok := strings.CutPrefix(name, "t")
	if !ok {
		return false
	}
	backend, rest, ok := strings.Cut(rest, "_")
	if _, isNumber := digits(backend); !ok || !isNumber {
		return false
	}
	_, ok = parseName(rest)
	return ok
}

// number reads an OID or a segment number in the one form that PostgreSQL writes.
func number(s string) (uint32, bool) {
	n, ok := digits(s)
	return uint32(n), ok && n <= 1<<32-1 && (s == "0" || s[0] != '0')
}

func digits(s string) (uint64, bool) {
	if strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}

// emptied are the directories whose contents belong to the running server alone
// (excludeDirContents in basebackup.c); they are made empty, with what is kept.
var emptied = map[string]bool{
	"pg_wal": true, "pg_replslot": true, "pg_dynshmem": true, "pg_notify": true,
	"pg_serial": true, "pg_snapshots": true, "pg_stat_tmp": true, "pg_subtrans": true,
}

// walDirs are the directories inside pg_wal that the server expects.
var walDirs = map[string]bool{"archive_status": true, "summaries": true}

// excluded are the files that are never copied (excludeFiles in basebackup.c), and
// the older labels that pg_ctl and pgBackRest know.
var excluded = map[string]bool{
	"postgresql.auto.conf.tmp": true, "current_logfiles.tmp": true,
	"backup_label": true, "backup_label.old": true, "tablespace_map": true, "tablespace_map.old": true,
	"backup_manifest": true, "postmaster.pid": true, "postmaster.opts": true, ".DS_Store": true,
}

// skipName says that a name is excluded wherever it stands.
func skipName(name string) bool {
	return excluded[name] || strings.HasPrefix(name, "pg_internal.init") || strings.HasPrefix(name, "pgsql_tmp")
}
