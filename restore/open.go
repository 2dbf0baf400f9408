package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
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

func writeAuto(dir string, p sandbox.Programs, more map[string]string) error {
	return writeSettings(&tree{root: dir, own: p.Own}, more)
}

// Open starts a cluster that a restore left closed, for its users: its own
// pg_hba.conf holds from here on.
func Open(ctx context.Context, dir string, opt OpenOptions) (Opened, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Opened{}, fmt.Errorf("opening: %w", err)
	}
	m, err := ReadMarker(dir)
	if err != nil {
		return Opened{}, fmt.Errorf("opening: %w", err)
	}
	if m.Result == nil || !m.Result.Complete || m.State != "closed" && m.State != "quarantined" && m.State != "open" {
		return Opened{}, fmt.Errorf("opening %s: the restore into it is %s, not closed and complete; discard it and restore again", dir, m.State)
	}
	if pid := running(dir); pid != 0 {
		return Opened{}, fmt.Errorf("opening %s: a server runs there already (process %d)", dir, pid)
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
	o := Opened{Port: opt.Port, Socket: dir, Log: filepath.Join(dir, "holdfast-start.log")}
	more := map[string]string{"port": strconv.Itoa(opt.Port), "listen_addresses": cmp.Or(opt.Listen, "localhost"), "unix_socket_directories": dir, "cluster_name": "restored " + m.Cluster}
	if len(dir)+len("/.s.PGSQL.65535") > maxSocketPath {
		more["unix_socket_directories"], o.Socket = "", "localhost"
	}
	if m.State == "quarantined" {
		maps.Copy(more, quarantined(dir, m.Cluster))
	}
	if err := writeAuto(dir, programs, more); err != nil {
		return Opened{}, err
	}
	if err := programs.StartDaemon(ctx, dir, o.Log); err != nil {
		return Opened{}, fmt.Errorf("opening %s: %w", dir, err)
	}
	if m.State == "closed" {
		m.State = "open"
		if err := m.write(dir, programs); err != nil {
			return Opened{}, err
		}
	}
	o.Connection = fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", o.Socket, opt.Port)
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
