package postgres

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Label is what a backup_label says (do_pg_backup_stop and build_backup_content in
// src/backend/access/transam).
type Label struct {
	Start       lsn.LSN
	Checkpoint  lsn.LSN
	Timeline    uint32
	Name        string
	FromStandby bool
}

// ParseLabel reads a backup_label. The lines that it does not need may be missing;
// those it needs may not.
func ParseLabel(data []byte) (Label, error) {
	said := map[string]string{}
	for _, line := range strings.Split(string(data), "\n") {
		if key, value, ok := strings.Cut(line, ": "); ok {
			if _, twice := said[key]; !twice {
				said[key] = value
			}
		}
	}
	start, _, _ := strings.Cut(said["START WAL LOCATION"], " ")
	l := Label{Name: said["LABEL"], FromStandby: said["BACKUP FROM"] == "standby"}
	var err error
	if l.Start, err = lsn.Parse(start); err != nil {
		return Label{}, fmt.Errorf("backup_label: START WAL LOCATION: %w", err)
	}
	if l.Checkpoint, err = lsn.Parse(said["CHECKPOINT LOCATION"]); err != nil {
		return Label{}, fmt.Errorf("backup_label: CHECKPOINT LOCATION: %w", err)
	}
	t, err := strconv.ParseUint(said["START TIMELINE"], 10, 32)
	if err != nil || t == 0 {
		return Label{}, fmt.Errorf("backup_label: START TIMELINE %q is no timeline", said["START TIMELINE"])
	}
	l.Timeline = uint32(t)
	return l, nil
}
