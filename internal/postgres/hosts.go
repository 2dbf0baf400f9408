package postgres

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Host is one of the servers that a connection string names.
type Host struct {
	Name string // or the directory of a Unix socket
	Port uint16
}

func (h Host) String() string { return fmt.Sprintf("%s port %d", h.Name, h.Port) }

// Hosts are the servers that a connection string names, in its order.
func Hosts(dsn string) ([]Host, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("read the PostgreSQL connection string: %w", err)
	}
	return hosts(cfg), nil
}

// hosts leaves out what is tried twice, with TLS and without.
func hosts(cfg *pgx.ConnConfig) []Host {
	list := []Host{{cfg.Host, cfg.Port}}
	for _, f := range cfg.Fallbacks {
		if h := (Host{f.Host, f.Port}); h != list[len(list)-1] {
			list = append(list, h)
		}
	}
	return list
}

func named(cfg *pgx.ConnConfig) string {
	var list []string
	for _, h := range hosts(cfg) {
		list = append(list, h.String())
	}
	return strings.Join(list, ", ")
}

// choose narrows cfg down to one host, if asked to.
func choose(cfg *pgx.ConnConfig, opt ConnectOptions) error {
	only := opt.Only
	if only == nil {
		return nil
	}
	if opt.Any {
		cfg.ValidateConnect = nil
	}
	ways := append([]*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...)
	var fit []*pgconn.FallbackConfig
	for _, w := range ways {
		if w.Host == only.Name && w.Port == only.Port {
			fit = append(fit, w)
		}
	}
	if len(fit) == 0 {
		return fmt.Errorf("connect to PostgreSQL at %s: the connection string names %s", only, named(cfg))
	}
	cfg.Host, cfg.Port, cfg.TLSConfig, cfg.Fallbacks = fit[0].Host, fit[0].Port, fit[0].TLSConfig, fit[1:]
	return nil
}

// wishes are the values of target_session_attrs as the driver keeps them.
var wishes = []struct {
	ask pgconn.ValidateConnectFunc
	fit func(standby, readOnly bool) bool
}{
	{pgconn.ValidateConnectTargetSessionAttrsPrimary, func(standby, _ bool) bool { return !standby }},
	{pgconn.ValidateConnectTargetSessionAttrsStandby, func(standby, _ bool) bool { return standby }},
	{pgconn.ValidateConnectTargetSessionAttrsPreferStandby, func(standby, _ bool) bool { return standby }},
	{pgconn.ValidateConnectTargetSessionAttrsReadWrite, func(standby, readOnly bool) bool { return !standby && !readOnly }},
	{pgconn.ValidateConnectTargetSessionAttrsReadOnly, func(standby, readOnly bool) bool { return standby || readOnly }},
}

// judge has target_session_attrs decided by what a server reports of itself when a
// connection begins: the driver asks in SQL, which a replication connection does
// not answer. A server before 14 reports nothing, and is asked as before.
func judge(cfg *pgx.ConnConfig) {
	asked := cfg.ValidateConnect
	for _, w := range wishes {
		if !isAsk(asked, w.ask) {
			continue
		}
		cfg.ValidateConnect = func(ctx context.Context, c *pgconn.PgConn) error {
			standby := c.ParameterStatus("in_hot_standby")
			if standby == "" {
				return asked(ctx, c)
			}
			if w.fit(standby == "on", c.ParameterStatus("default_transaction_read_only") == "on") {
				return nil
			}
			return fmt.Errorf("%w: in_hot_standby is %s", errUnfit, standby)
		}
	}
}

var errUnfit = errors.New("the server is not what target_session_attrs asks for")

// dial connects, and takes any host where none is what is only preferred.
func dial(ctx context.Context, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	prefers := isAsk(cfg.ValidateConnect, pgconn.ValidateConnectTargetSessionAttrsPreferStandby)
	judge(cfg)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err == nil || !prefers {
		return conn, err
	}
	cfg.ValidateConnect = nil
	return pgx.ConnectConfig(ctx, cfg)
}

func isAsk(a, b pgconn.ValidateConnectFunc) bool {
	return a != nil && reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}
