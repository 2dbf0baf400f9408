package restore

import (
	"cmp"
	"context"
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
	if m.State == stateStandby {
		return Opened{}, fmt.Errorf("opening %s: it is a standby: start it as PostgreSQL's user, by pg_ctl or its service", dir)
	}
	if m.InPlace != nil && !m.InPlace.At.IsZero() {
		return Opened{}, fmt.Errorf("opening %s: it took the place of the cluster's own directory: start it as that is always started", dir)
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
	o, err := start(ctx, dir, m, programs, opt)
	if err != nil {
		return Opened{}, fmt.Errorf("opening %s: %w", dir, err)
	}
	if m.State == "closed" {
		m.State = "open"
		if err := m.write(dir, programs); err != nil {
			return Opened{}, err
		}
	}
	return o, nil
}

// start starts the server on the port that was asked for, or the first free one:
// where somebody else takes that one meanwhile, on the next.
func start(ctx context.Context, dir string, m Marker, programs sandbox.Programs, opt OpenOptions) (Opened, error) {
	if opt.Port != 0 {
		return startOn(ctx, dir, m, programs, opt)
	}
	for from := firstPort; ; from = opt.Port + 1 {
		var err error
		if opt.Port, err = freePort(ctx, from); err != nil {
			return Opened{}, err
		}
		o, err := startOn(ctx, dir, m, programs, opt)
		if err == nil || ctx.Err() != nil || isFree(ctx, opt.Port) {
			return o, err
		}
	}
}

func startOn(ctx context.Context, dir string, m Marker, programs sandbox.Programs, opt OpenOptions) (Opened, error) {
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
	o.Connection = fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", o.Socket, opt.Port)
	return o, programs.StartDaemon(ctx, dir, o.Log)
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

// The ports that are tried.
const firstPort, endPort = 5433, 5533

// freePort looks for a port that nobody listens on.
func freePort(ctx context.Context, from int) (int, error) {
	for port := from; port < endPort; port++ {
		if isFree(ctx, port) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("looking for a free port: %d to %d are all taken; give --port", firstPort, endPort-1)
}

func isFree(ctx context.Context, port int) bool {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "localhost:"+strconv.Itoa(port))
	if err == nil {
		l.Close()
	}
	return err == nil
}
