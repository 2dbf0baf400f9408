package restore

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stale are files that recovery must not find (C-56).
var stale = []string{"recovery.signal", "standby.signal", "postmaster.pid", "postmaster.opts", "backup_label.old", "tablespace_map.old"}

// prepareRecovery writes what recovery needs, makes all durable, and then writes
// pg_control (C-3, C-4, C-54, C-56).
func (t *tree) prepareRecovery() error {
	for _, name := range stale {
		if err := os.Remove(filepath.Join(t.root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, dir := range []string{"pg_wal", "pg_wal/archive_status", "pg_tblspc"} {
		if err := t.mkdir(filepath.Join(t.root, dir), 0o700); err != nil {
			return err
		}
	}
	if err := t.write("backup_label", t.man.Header.Label, 0o600); err != nil {
		return err
	}
	if err := t.linkSpaces(); err != nil {
		return err
	}
	if err := t.write("standby.signal", nil, 0o600); err != nil {
		return err
	}
	auto, err := os.ReadFile(filepath.Join(t.root, "postgresql.auto.conf"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := t.write("postgresql.auto.conf", harmless(auto, nil), 0o600); err != nil {
		return err
	}
	if err := t.configuration(); err != nil {
		return err
	}
	return t.finish()
}

// linkSpaces points the tablespaces' links at their new places, and says so in
// tablespace_map, from which recovery makes the links again.
func (t *tree) linkSpaces() error {
	var b strings.Builder
	for _, oid := range sortedKeys(t.spaces) {
		dir := t.spaces[oid]
		link := filepath.Join(t.root, "pg_tblspc", fmt.Sprint(oid))
		if err := os.Symlink(dir, link); err != nil {
			return fmt.Errorf("linking tablespace %d: %w", oid, err)
		}
		if err := t.own(link); err != nil {
			return err
		}
		// do_pg_backup_start escapes newlines and backslashes (xlog.c).
		fmt.Fprintf(&b, "%d %s\n", oid, strings.NewReplacer("\\", "\\\\", "\n", "\\\n").Replace(dir))
	}
	if b.Len() == 0 {
		return nil
	}
	return t.write("tablespace_map", []byte(b.String()), 0o600)
}

func sortedKeys(m map[uint32]string) []uint32 {
	var keys []uint32
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// moved are settings that name places of the host that the snapshot was taken on.
var moved = regexp.MustCompile(`(?i)^\s*(data_directory|hba_file|ident_file|external_pid_file|config_file)\s*[= ]`)

// configuration writes configuration that lay outside the data directory
// (Debian's layout, C-15) into it, so that pg_ctl can start there.
func (t *tree) configuration() error {
	for path, data := range t.outside {
		name := filepath.Base(path)
		switch {
		case filepath.Base(filepath.Dir(path)) == "conf.d":
			if err := t.mkdir(filepath.Join(t.root, "conf.d"), 0o700); err != nil {
				return err
			}
			name = "conf.d/" + name
		case name == "postgresql.conf":
			data = commentOut(data, moved)
		case name != "pg_hba.conf" && name != "pg_ident.conf":
			continue // pg_ctl.conf, start.conf, environment: Debian's own wrapper's
		}
		if _, err := os.Stat(filepath.Join(t.root, name)); err == nil {
			continue
		}
		if err := t.write(name, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) confFile() string { return filepath.Join(t.root, "postgresql.conf") }

func commentOut(data []byte, what *regexp.Regexp) []byte {
	var out bytes.Buffer
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if what.MatchString(s.Text()) {
			out.WriteString("#holdfast# ")
		}
		out.WriteString(s.Text() + "\n")
	}
	return out.Bytes()
}

// harming are settings with which a restored copy would archive, replicate, or
// recover to a target of long ago (promise 10, C-56, C-66).
var harming = regexp.MustCompile(`(?i)^\s*(recovery_target\w*|restore_command|archive_mode|archive_command|archive_library|archive_cleanup_command|recovery_end_command|primary_conninfo|primary_slot_name|promote_trigger_file|synchronous_standby_names|holdfast_\w*)\s*[= ]`)

// harmless is postgresql.auto.conf without what harms, with what holds the copy
// back, and with more.
func harmless(auto []byte, more map[string]string) []byte {
	out := bytes.NewBuffer(commentOut(auto, harming))
	out.WriteString("# set by holdfast: a restored copy archives nowhere and follows nobody\n")
	settings := map[string]string{"archive_mode": "off", "restore_command": "", "primary_conninfo": "", "synchronous_standby_names": ""}
	for k, v := range more {
		settings[k] = v
	}
	var keys []string
	for k := range settings {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(out, "%s = '%s'\n", k, strings.ReplaceAll(settings[k], "'", "''"))
	}
	return out.Bytes()
}

// checkDisk refuses a target whose file system has too little room.
func checkDisk(dir string, need int64) error {
	for p := dir; ; p = filepath.Dir(p) {
		var st unix.Statfs_t
		err := unix.Statfs(p, &st)
		if errors.Is(err, unix.ENOENT) && p != "/" {
			continue
		}
		if err != nil {
			return fmt.Errorf("asking for the free space of %s: %w", p, err)
		}
		if free := int64(st.Bavail) * st.Bsize; free < need {
			return fmt.Errorf("%s has %d bytes free and the restore needs up to %d; give another --to", p, free, need)
		}
		return nil
	}
}

// running is the process that holds a data directory, 0 for none.
func running(dir string) int {
	data, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(data), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(cmp.Or(first, "0")))
	if err != nil || pid <= 0 || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return 0
	}
	return pid
}
