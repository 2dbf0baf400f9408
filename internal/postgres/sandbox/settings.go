package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/control"
)

// essential are the preloaded libraries without which data cannot be read or WAL
// not be replayed. All others are dropped, job schedulers and senders above all:
// nothing that a check asks needs them.
var essential = []string{"timescaledb", "citus", "citus_columnar", "orioledb", "pg_tde"}

// walls are the settings that close the room. They go onto the command line,
// which outranks postgresql.auto.conf, the one file of the restored server that
// PostgreSQL reads whatever we say.
func (s *Server) walls(major int) map[string]string {
	dir := s.cfg.SocketDir
	w := map[string]string{
		"data_directory": s.cfg.DataDir, "config_file": filepath.Join(dir, "postgresql.conf"),
		"hba_file": filepath.Join(dir, "pg_hba.conf"), "ident_file": filepath.Join(dir, "pg_ident.conf"),
		"external_pid_file": "", "listen_addresses": "", "port": strconv.Itoa(port), "ssl": "off",
		"unix_socket_directories": dir, "unix_socket_permissions": "0700", "unix_socket_group": "",
		"archive_mode": "off", "archive_command": "", "archive_cleanup_command": "", "recovery_end_command": "",
		"primary_conninfo": "", "primary_slot_name": "", "max_logical_replication_workers": "0",
		"session_preload_libraries": "", "local_preload_libraries": "",
		"shared_preload_libraries": strings.Join(s.room.Kept, ","),
		"logging_collector":        "off", "log_destination": "stderr",
		// A commit would wait for standbys that are not here.
		"synchronous_standby_names": "",
		// A crash is an observation, not something to hide.
		"restart_after_crash": "off",
		// Kept libraries' own workers and reports.
		"timescaledb.max_background_workers": "0", "timescaledb.telemetry_level": "off",
		"citus.enable_statistics_collection": "off", "cron.launch_active_jobs": "off",
	}
	if major >= 15 {
		w["archive_library"] = ""
	}
	if major < 15 {
		w["stats_temp_directory"] = "pg_stat_tmp"
	}
	if major >= 17 {
		// Login triggers would run the restored server's code on our connections.
		w["event_triggers"] = "off"
	}
	return w
}

// defaults make a server that was tuned for another host start on this one; Settings may change them.
func defaults() map[string]string {
	return map[string]string{
		"shared_buffers": "128MB", "huge_pages": "off", "dynamic_shared_memory_type": "posix", "wal_level": "replica",
		"hot_standby": "on", "restore_command": "", "log_line_prefix": "%m [%p] ", "log_timezone": "UTC",
		"log_min_messages": "warning", "cluster_name": "holdfast sandbox", "max_connections": "20",
	}
}

// settle decides all settings; need are those a standby must match.
func settle(walls, settings map[string]string, need map[string]int64) (map[string]string, error) {
	out := defaults()
	for name, value := range settings {
		name = strings.ToLower(name)
		if _, walled := walls[name]; walled {
			return nil, fmt.Errorf("setting %s holds the sandbox closed and cannot be given", name)
		}
		if name == "include" || name == "include_dir" || name == "include_if_exists" || strings.ContainsAny(name, "= \t\n") {
			return nil, fmt.Errorf("setting %q is not a PostgreSQL setting", name)
		}
		out[name] = value
	}
	for name, least := range need {
		have, err := strconv.ParseInt(out[name], 10, 64)
		if out[name] != "" && err != nil {
			return nil, fmt.Errorf("setting %s = %q: want a number", name, out[name])
		}
		out[name] = strconv.FormatInt(max(have, least), 10)
	}
	maps.Copy(out, walls)
	return out, nil
}

// required reads from pg_control what replay needs (C-63, CheckRequiredParameterValues).
func required(dataDir string) (map[string]int64, error) {
	c, _, err := control.ReadFile(filepath.Join(dataDir, "global", "pg_control"))
	if err != nil {
		return nil, err
	}
	return map[string]int64{
		"max_connections": int64(c.MaxConnections), "max_worker_processes": int64(c.MaxWorkers),
		"max_wal_senders": int64(c.MaxWALSenders), "max_prepared_transactions": int64(c.MaxPrepared),
		"max_locks_per_transaction": int64(c.MaxLocksPerXact),
	}, nil
}

// arguments is the postmaster's command line.
func (s *Server) arguments(ctx context.Context) ([]string, error) {
	need, err := required(s.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	version, err := os.ReadFile(filepath.Join(s.cfg.DataDir, "PG_VERSION"))
	if err != nil {
		return nil, err
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(version)))
	if err != nil {
		return nil, fmt.Errorf("PG_VERSION: %w", err)
	}
	s.preload(ctx)
	all, err := settle(s.walls(major), s.cfg.Settings, need)
	if err != nil {
		return nil, err
	}
	args := []string{"-D", s.cfg.DataDir}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		args = append(args, "-c", name+"="+all[name])
	}
	return args, nil
}

// preload divides the restored server's shared_preload_libraries. PostgreSQL
// itself reads the files; when they cannot be read here (an include that was not
// restored), postgresql.auto.conf alone is asked, and a note says so.
func (s *Server) preload(ctx context.Context) {
	own := filepath.Join(s.cfg.SocketDir, "postgresql.conf")
	file := s.cfg.ConfigFile
	if file == "" {
		file = filepath.Join(s.cfg.DataDir, "postgresql.conf")
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			s.room.Notes = append(s.room.Notes, "the data directory holds no postgresql.conf: preloaded libraries are known from postgresql.auto.conf only")
			file = own
		}
	}
	libs, err := s.ask(ctx, file)
	if err != nil && file != own {
		s.room.Notes = append(s.room.Notes, fmt.Sprintf("%s could not be read for shared_preload_libraries: %v", file, err))
		libs, err = s.ask(ctx, own)
	}
	if err != nil {
		s.room.Notes = append(s.room.Notes, fmt.Sprintf("shared_preload_libraries are unknown: %v", err))
	}
	s.room.Kept, s.room.Dropped = divide(libs, append(s.cfg.Keep, essential...))
}

func (s *Server) ask(ctx context.Context, file string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out strings.Builder
	err := s.cfg.Programs.Run(ctx, &out, "postgres", "-D", s.cfg.DataDir, "-c", "data_directory="+s.cfg.DataDir,
		"-c", "config_file="+file, "-C", "shared_preload_libraries")
	return strings.TrimSpace(out.String()), err
}

func divide(libs string, keep []string) (kept, dropped []string) {
	for _, lib := range strings.Split(libs, ",") {
		lib = strings.Trim(strings.TrimSpace(lib), `"`)
		base := strings.TrimSuffix(filepath.Base(lib), ".so")
		switch {
		case lib == "":
		case slices.Contains(keep, base):
			kept = append(kept, lib)
		default:
			dropped = append(dropped, lib)
		}
	}
	return kept, dropped
}

// furnish makes the private directory and the files in it.
func (s *Server) furnish() error {
	if s.cfg.Role == "" {
		s.cfg.Role = "postgres"
	}
	hba, err := localHBA(s.cfg.HBA)
	if err != nil {
		return err
	}
	if s.cfg.SocketDir == "" {
		dir, err := os.MkdirTemp("/tmp", "holdfast-")
		if err != nil {
			return err
		}
		s.cfg.SocketDir, s.ownDir = dir, true
	}
	dir := s.cfg.SocketDir
	if n := len(dir) + len("/.s.PGSQL.5432"); n > 107 || !filepath.IsAbs(dir) || strings.ContainsAny(dir, ",\"") {
		return fmt.Errorf("socket directory %s: want an absolute path of at most 93 bytes without commas and quotes", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
		return errors.Join(fmt.Errorf("socket directory %s: not a directory", dir), err)
	}
	files := map[string]string{
		"postgresql.conf": "# Every setting of this sandbox is on the server's command line.\n",
		"pg_hba.conf":     hba, "pg_ident.conf": "",
	}
	for name, text := range files {
		if err := s.place(filepath.Join(dir, name), text); err != nil {
			return err
		}
	}
	return errors.Join(os.Chmod(dir, 0o700), s.cfg.Programs.Own(dir))
}

// place writes a file anew, for we may be root in a directory of a lesser user,
// who could have left a link there.
func (s *Server) place(path, text string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close(), s.cfg.Programs.Own(path))
}

func localHBA(hba string) (string, error) {
	if hba == "" {
		return "local all all trust\n", nil
	}
	for _, line := range strings.Split(hba, "\n") {
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "#") && f[0] != "local" {
			return "", fmt.Errorf("pg_hba.conf line %q: a sandbox accepts local connections only", line)
		}
	}
	return hba, nil
}
