package restore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
)

// OpenOptions say how a restored cluster is started for its users.
type OpenOptions struct {
	Binaries, User string
	Listen         string // listen_addresses; "" is localhost
	Port           int    // 0: the first free one from 5433 on
}

// Opened says how to reach a restored cluster.
type Opened struct {
	Port       int    `json:"port"`
	Socket     string `json:"socket"`
	Connection string `json:"connection"`
	Log        string `json:"log"`
}

// finishConfig leaves settings with which the copy does no harm.
func (room *Room) finishConfig() error { return writeAuto(room.opt.To, room.programs, nil) }

func writeAuto(dir string, p sandbox.Programs, more map[string]string) error {
	t := tree{root: dir, own: p.Own}
	auto, err := os.ReadFile(filepath.Join(dir, "postgresql.auto.conf"))
	if err != nil {
		return fmt.Errorf("reading the restored cluster's settings: %w", err)
	}
	return t.write("postgresql.auto.conf", harmless(auto, more), 0o600)
}

// Open starts a cluster that a restore left closed, for its users: its own
// pg_hba.conf holds from here on.
func Open(ctx context.Context, dir string, opt OpenOptions) (Opened, error) {
	m, err := ReadMarker(dir)
	if err != nil {
		return Opened{}, fmt.Errorf("opening: %w", err)
	}
	if m.Result == nil || !m.Result.Complete || m.State != "closed" {
		return Opened{}, fmt.Errorf("opening %s: the restore into it is %s, not closed and complete; discard it and restore again", dir, m.State)
	}
	programs, err := sandbox.FindPrograms(majorOf(dir), opt.Binaries)
	if err != nil {
		return Opened{}, err
	}
	programs.User = opt.User
	if opt.Port == 0 {
		if opt.Port, err = freePort(ctx); err != nil {
			return Opened{}, err
		}
	}
	more := map[string]string{"port": strconv.Itoa(opt.Port), "listen_addresses": opt.Listen, "unix_socket_directories": dir, "cluster_name": "restored " + m.Cluster}
	if opt.Listen == "" {
		more["listen_addresses"] = "localhost"
	}
	if err := writeAuto(dir, programs, more); err != nil {
		return Opened{}, err
	}
	log := filepath.Join(dir, "holdfast-start.log")
	if err := programs.StartDaemon(ctx, dir, log); err != nil {
		return Opened{}, err
	}
	o := Opened{Port: opt.Port, Socket: dir, Log: log}
	o.Connection = fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", dir, opt.Port)
	return o, nil
}

func majorOf(dir string) int {
	data, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return 0
	}
	var n int
	if _, err := fmt.Sscan(string(data), &n); err != nil {
		return 0
	}
	return n
}

// freePort looks for a port that nobody listens on.
func freePort(ctx context.Context) (int, error) {
	var lc net.ListenConfig
	for port := 5433; port < 5533; port++ {
		l, err := lc.Listen(ctx, "tcp", "localhost:"+strconv.Itoa(port))
		if err == nil {
			l.Close()
			return port, nil
		}
	}
	return 0, errors.New("looking for a free port: 5433 to 5532 are all taken; give --port")
}
