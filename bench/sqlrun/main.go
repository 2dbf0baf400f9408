// Command sqlrun sends SQL to a PostgreSQL and prints the rows that come back,
// unaligned, one a line: what the demo needs of psql, on machines that have only
// the server's programs. It sends what it is given in one go, as psql -c does
// (several statements are one transaction), keeps nothing, and knows no
// meta-commands. It ends with status 1 and the server's message when SQL fails.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "sqlrun:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	dsn := flag.String("dsn", "", "where the server is, as libpq's `string` of keywords or a URL")
	sql := flag.String("c", "", "the `SQL` to send")
	file := flag.String("f", "", "a `file` of SQL to send instead")
	sep := flag.String("F", "|", "what stands `between` the columns of a row")
	every := flag.Duration("every", 0, "send it again and again, this long apart, until told to stop")
	flag.Parse()
	if (*sql == "") == (*file == "") || flag.NArg() > 0 {
		return errors.New("say what to send, by either -c SQL or -f FILE")
	}
	if *file != "" {
		text, err := os.ReadFile(*file)
		if err != nil {
			return err
		}
		*sql = string(text)
	}
	conn, err := pgconn.Connect(ctx, *dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for {
		if err := send(ctx, conn, *sql, *sep, out); err != nil || *every == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(*every):
		}
	}
}

func send(ctx context.Context, conn *pgconn.PgConn, sql, sep string, out io.Writer) error {
	results := conn.Exec(ctx, sql)
	for results.NextResult() {
		for rows := results.ResultReader(); rows.NextRow(); {
			if _, err := fmt.Fprintf(out, "%s\n", bytes.Join(rows.Values(), []byte(sep))); err != nil {
				return errors.Join(err, results.Close())
			}
		}
	}
	return results.Close()
}
