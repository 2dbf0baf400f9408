package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/internal/thin"
	"github.com/holdfast-dr/holdfast/internal/thin/ahead"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

type pushIn struct {
	Body thin.Push
}

type pushDoc struct {
	Archived string `json:"archived"`
}

// walPush archives one file for archive_command.
func (n *node) walPush(ctx context.Context, in pushIn) (pushDoc, error) {
	name, err := n.pushCluster(in.Body.Cluster)
	if err != nil {
		return pushDoc{}, err
	}
	push := func(ctx context.Context, p *protected) error {
		wait, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		s, err := p.ready(wait)
		if err != nil {
			return err
		}
		if s.pusher == nil {
			return usage("cluster %s is archived by streaming: take archive_command away, or set wal.mode: push", name)
		}
		return s.pusher.Push(ctx, snapshot.PushRequest{Path: in.Body.Path, DataDir: in.Body.DataDir})
	}
	if n.runner == nil {
		err = n.withArchiving(ctx, name, push)
	} else {
		var p *protected
		if p, err = n.live(name); err == nil {
			err = push(ctx, p)
		}
	}
	return pushDoc{filepath.Base(in.Body.Path)}, err
}

// pushCluster is the cluster of a push: the only one whose WAL is pushed, unless named.
func (n *node) pushCluster(name string) (string, error) {
	var list []string
	for _, c := range n.cfg.Clusters {
		if c.Connection != "" && (name == c.Name || name == "" && c.WAL.Mode == "push") {
			list = append(list, c.Name)
		}
	}
	if len(list) != 1 {
		return "", usage("wal push: %d clusters of the configuration fit (%s); name one with --cluster", len(list), strings.Join(list, ", "))
	}
	return list[0], nil
}

func (e *env) walCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "wal", Short: "Push, fetch, watch and, by order, drop the write-ahead log"}
	cmd.AddCommand(e.walPushCommand(), e.walFetchCommand(), e.walStatusCommand(), e.walDropCommand())
	return cmd
}

func (e *env) walPushCommand() *cobra.Command {
	var cluster string
	cmd := &cobra.Command{
		Use: "push PATH", Short: "Archive one file: archive_command = 'holdfast wal push %p'", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := os.Getwd()
			if err != nil {
				return err
			}
			var in pushIn
			in.Body.Cluster, in.Body.Path, in.Body.DataDir = cluster, args[0], dir
			cfg, err := e.load()
			if err != nil {
				return err
			}
			if client, err := server.Dial(c.Context(), cfg.Node.Socket); err == nil {
				_, err = server.Call(c.Context(), client, opWALPush, in)
				return err
			}
			return e.asNode(c.Context(), func(ctx context.Context, n *node) error {
				_, err := n.walPush(ctx, in)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "which `CLUSTER`, where several are pushed")
	return cmd
}

// errAbsent ends `wal fetch` with exit 1: the file is proven not to be there.
var errAbsent = errors.New("the file is not in the archive")

// fetches says whether a command line is a `wal fetch`, wherever its flags stand
// and however wrong it is.
func fetches(args []string) bool {
	i := slices.Index(args, "wal")
	return i >= 0 && slices.Contains(args[i:], "fetch")
}

// fetchCode is the exit code of `wal fetch`: whatever is not a proof of absence
// is a doubt, usage and configuration included (C-62).
func fetchCode(err error) int {
	if err == nil {
		return restore.ExitFetched
	}
	if errors.Is(err, errAbsent) {
		return restore.ExitAbsent
	}
	return restore.ExitDoubt
}

// doubtPanic ends a fetch that panics with a doubt: Go's own 2 would say "absent".
func doubtPanic(errw io.Writer, code *int) {
	if p := recover(); p != nil {
		fmt.Fprintf(errw, "holdfast: panic: %v\n%s", p, debug.Stack())
		*code = restore.ExitDoubt
	}
}

func (e *env) walFetchCommand() *cobra.Command {
	var room, cluster, identity string
	var prefetch int
	var fill bool
	cmd := &cobra.Command{
		Use: "fetch NAME DEST", Short: "Fetch one file: exit 0 fetched, 1 proven absent, 254 every doubt", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			name, dest := args[0], args[1]
			if room != "" {
				return fetched(thin.Fetch(room, name, dest))
			}
			spool, recovers := ahead.SpoolFor(name, dest)
			if fill {
				return e.withArchive(c.Context(), cluster, identity, func(ctx context.Context, r restore.Repo, cluster string) error {
					return restore.FetchAhead(ctx, r, cluster, name, spool, prefetch)
				})
			}
			err := e.withArchive(c.Context(), cluster, identity, func(ctx context.Context, r restore.Repo, cluster string) error {
				return fetched(restore.FetchByName(ctx, r, cluster, name, dest))
			})
			if err == nil && recovers && prefetch > 0 {
				_ = ahead.StartFill(e.config, cluster, identity, prefetch, name, dest) // the file is there; the next fetch tries again
			}
			return err
		},
	}
	cmd.Flags().StringVar(&room, "room", "", "ask the restore that listens on `SOCKET`")
	cmd.Flags().StringVar(&cluster, "cluster", "", "which `CLUSTER`, where the repository has several")
	cmd.Flags().StringVar(&identity, "identity", "", "age identity `FILE` that opens data")
	cmd.Flags().IntVar(&prefetch, "prefetch", ahead.DefaultPrefetch, "fetch so many segments ahead of recovery, into DEST's directory; 0: none")
	cmd.Flags().BoolVar(&fill, "fill", false, "fetch ahead, and nothing else")
	cmd.Flags().Lookup("fill").Hidden = true
	return cmd
}

// fetched is what a fetch came to, as an error.
func fetched(code int, err error) error {
	if code == restore.ExitAbsent {
		return errors.Join(errAbsent, silent{code})
	}
	return err
}

// withArchive opens the archive of a cluster to fetch without a plan: absence is
// proven by fresh listings.
func (e *env) withArchive(ctx context.Context, cluster, identity string, do func(context.Context, restore.Repo, string) error) error {
	w, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	debug.SetGCPercent(-1) // it ends before there is anything to collect; limits.memory holds all the same
	if cluster == "" {
		names, err := w.catalog.Clusters(ctx)
		if err != nil {
			return err
		}
		if len(names) != 1 {
			return usage("wal fetch: the repository shows %d clusters (%s); name one with --cluster", len(names), strings.Join(names, ", "))
		}
		cluster = names[0]
	}
	repo, err := w.repo(configs.Secret{File: identity})
	if err != nil {
		return err
	}
	return do(ctx, repo, cluster)
}
