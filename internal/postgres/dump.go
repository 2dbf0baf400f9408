package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrNoDump means that no pg_dump is at hand that knows the server.
var ErrNoDump = errors.New("there is no pg_dump for this server")

// Dump is a pg_dump that writes DDL.
type Dump struct {
	Program string
	Version string // as the program says it
}

// FindDump finds a pg_dump of the server's major version or a newer one: where
// pattern says ({major} stands for the number), else on PATH.
func FindDump(ctx context.Context, pattern string, major int) (Dump, error) {
	var places []string
	if pattern != "" {
		places = append(places, filepath.Join(strings.ReplaceAll(pattern, "{major}", strconv.Itoa(major)), "pg_dump"))
	}
	if path, err := exec.LookPath("pg_dump"); err == nil {
		places = append(places, path)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, p := range places {
		out, err := exec.CommandContext(ctx, p, "--version").Output()
		said := strings.TrimSpace(string(out))
		_, number, _ := strings.Cut(said, "(PostgreSQL) ")
		number, _, _ = strings.Cut(number, ".")
		if n, nerr := strconv.Atoi(number); err == nil && nerr == nil && n >= major {
			return Dump{p, said}, nil
		}
	}
	return Dump{}, fmt.Errorf("%w: looked for PostgreSQL %d's or a newer one at %s", ErrNoDump, major, strings.Join(places, ", "))
}

// DumpArgs are pg_dump's arguments for the DDL of schemas as it was in an exported
// snapshot: tables, types, functions and extensions, without owners, grants and
// tablespaces, which are the server's, and without what replicates.
func DumpArgs(snapshot string, schemas, extensions []string) []string {
	return append([]string{"--no-owner", "--no-privileges"}, OwnDumpArgs(snapshot, schemas, extensions)...)
}

// OwnDumpArgs are DumpArgs with owners and grants, for a server that has the roles.
func OwnDumpArgs(snapshot string, schemas, extensions []string) []string {
	args := []string{"--schema-only", "--no-tablespaces", "--no-publications", "--no-subscriptions", "--no-security-labels", "--encoding=UTF8"}
	if snapshot != "" {
		args = append(args, "--snapshot="+snapshot)
	}
	for flag, names := range map[string][]string{"--schema=": schemas, "--extension=": extensions} {
		for _, n := range names {
			args = append(args, flag+`"`+strings.ReplaceAll(n, `"`, `""`)+`"`)
		}
	}
	return args
}

// DDL writes the DDL of a server's database. dsn has no password in it: all that is
// on a command line can be read by anybody.
func (d Dump) DDL(ctx context.Context, dsn, password, database string, args []string, to io.Writer) error {
	cmd := exec.CommandContext(ctx, d.Program, append(args, "--dbname="+InDatabase(dsn, database))...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if password != "" {
		cmd.Env = append(cmd.Env, "PGPASSWORD="+password)
	}
	said := &bytes.Buffer{}
	lines := PublicOnce(to)
	cmd.Stdout, cmd.Stderr = lines, &limited{said, 16 << 10}
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("reading the DDL of database %s by %s: %w: %s", database, d.Program, err, strings.TrimSpace(said.String()))
	}
	return lines.Close()
}

// PublicOnce lets pg_dump's text be loaded into a new database, which has a schema
// public already: pg_dump, told which schemas to dump, would make it.
func PublicOnce(to io.Writer) io.WriteCloser { return &publicOnce{to: to} }

type publicOnce struct {
	to   io.Writer
	held []byte // the line that is not yet whole
}

func (p *publicOnce) Write(b []byte) (int, error) {
	p.held = append(p.held, b...)
	end := bytes.LastIndexByte(p.held, '\n') + 1
	out := bytes.ReplaceAll(append([]byte("\n"), p.held[:end]...), []byte("\nCREATE SCHEMA public;\n"), []byte("\nCREATE SCHEMA IF NOT EXISTS public;\n"))
	p.held = append([]byte(nil), p.held[end:]...)
	_, err := p.to.Write(out[1:])
	return len(b), err
}

// Close writes a last line that no line break ended.
func (p *publicOnce) Close() error {
	_, err := p.to.Write(p.held)
	return err
}

// limited writes no more than left bytes, and swallows the rest.
type limited struct {
	to   *bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	l.to.Write(p[:n])
	return len(p), nil
}

// InDatabase is a connection string with another database: of what stands twice
// libpq takes the last.
func InDatabase(dsn, database string) string {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		sep := "?"
		if strings.Contains(dsn, "?") {
			sep = "&"
		}
		return dsn + sep + "dbname=" + strings.ReplaceAll(url.QueryEscape(database), "+", "%20")
	}
	return dsn + " dbname='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(database) + "'"
}
