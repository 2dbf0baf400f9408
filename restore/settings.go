package restore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/durable"
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
		path := filepath.Join(t.root, dir)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := t.mkdir(path, 0o700); err != nil {
			return err
		}
	}
	if err := t.write("backup_label", t.header.Label, 0o600); err != nil {
		return err
	}
	if err := t.linkSpaces(); err != nil {
		return err
	}
	if err := t.write("standby.signal", nil, 0o600); err != nil {
		return err
	}
	if err := writeSettings(t, nil); err != nil {
		return err
	}
	if err := t.configuration(t.outside()); err != nil {
		return err
	}
	return nil
}

// writeSettings makes postgresql.auto.conf harmless.
func writeSettings(t *tree, more map[string]string) error {
	auto, err := os.ReadFile(filepath.Join(t.root, autoConf))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the restored cluster's settings: %w", err)
	}
	return t.write(autoConf, harmless(auto, more), 0o600)
}

// moved are settings that name places of the host that the snapshot was taken on.
var moved = regexp.MustCompile(`(?i)^\s*(data_directory|hba_file|ident_file|external_pid_file|config_file)\s*[= ]`)

// configuration writes configuration that lay outside the data directory
// (Debian's layout, C-15) into it, so that pg_ctl can start there, and hides
// postgresql.conf: a directory whose restore did not end cannot be started.
func (t *tree) configuration(outside map[string][]byte) error {
	for path, data := range outside {
		name := filepath.Base(path)
		switch {
		case filepath.Base(filepath.Dir(path)) == "conf.d":
			if err := t.mkdir(filepath.Join(t.root, "conf.d"), 0o700); err != nil {
				return err
			}
			name = "conf.d/" + name
		case name != "postgresql.conf" && name != "pg_hba.conf" && name != "pg_ident.conf":
			continue // pg_ctl.conf, start.conf, environment: Debian's own wrapper's
		}
		if _, err := os.Stat(filepath.Join(t.root, name)); err == nil && !t.leads(name, path) {
			continue
		}
		if err := t.write(name, data, 0o600); err != nil {
			return err
		}
	}
	open := filepath.Join(t.root, openConf)
	conf, err := os.ReadFile(open)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := t.write(closedConf, commentOut(conf, moved), 0o600); err != nil {
		return err
	}
	if err := os.Remove(open); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// leads says whether the server used path, outside, and not the file of that name
// in its data directory, which initdb left there.
func (t *tree) leads(name, path string) bool {
	return !strings.Contains(name, "/") && slices.Contains(t.header.Facts.ConfigFiles, path)
}

// PostgreSQL does not start without its configuration file. A room's server has
// one of its own; the restored one gets its name back when the room is closed.
const (
	openConf   = "postgresql.conf"
	closedConf = "postgresql.conf.closed"
	autoConf   = "postgresql.auto.conf"
)

func (t *tree) confFile() string { return filepath.Join(t.root, closedConf) }

// disclose gives postgresql.conf its name back.
func disclose(dir string) error {
	err := os.Rename(filepath.Join(dir, closedConf), filepath.Join(dir, openConf))
	if err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

func commentOut(data []byte, what *regexp.Regexp) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(data) {
		if what.Match(line) {
			out.WriteString("#holdfast# ")
		}
		out.Write(line)
	}
	if len(data) > 0 && data[len(data)-1] != '\n' {
		out.WriteByte('\n')
	}
	return out.Bytes()
}

// harming are settings with which a restored copy would archive, replicate, or
// recover to a target of long ago (promise 10, C-56, C-66).
var harming = regexp.MustCompile(`(?i)^\s*(recovery_target\w*|restore_command|archive_mode|archive_command|archive_library|archive_cleanup_command|recovery_end_command|primary_conninfo|primary_slot_name|promote_trigger_file|synchronous_standby_names|holdfast_\w*)\s*[= ]`)

// ours begins what we add to postgresql.auto.conf.
const ours = "# Set by holdfast: a restored copy archives nowhere, follows nobody and subscribes to nothing.\n" +
	"# To put it into production, remove the lines below.\n"

// harmless is postgresql.auto.conf without what harms, with what holds the copy
// back, and with more.
func harmless(auto []byte, more map[string]string) []byte {
	auto, _, _ = bytes.Cut(auto, []byte(ours))
	auto, _, _ = bytes.Cut(auto, []byte(follows))
	out := bytes.NewBuffer(commentOut(commentOut(auto, harming), moved))
	out.WriteString(ours)
	settings := map[string]string{
		"archive_mode": "off", "restore_command": "", "primary_conninfo": "", "synchronous_standby_names": "",
		"max_logical_replication_workers": "0", "cron.launch_active_jobs": "off",
	}
	for k, v := range more {
		settings[k] = v
	}
	list(out, settings)
	return out.Bytes()
}

// list writes settings as PostgreSQL reads them: backslashes escape (guc-file.l).
func list(out *bytes.Buffer, settings map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(out, "%s = '%s'\n", k, strings.NewReplacer(`\`, `\\`, "'", "''").Replace(settings[k]))
	}
}
