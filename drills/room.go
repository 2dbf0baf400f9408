package drills

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/control"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/restore"
)

// inRoom asks the restored server.
func (r *run) inRoom(ctx context.Context) {
	type step struct {
		level, expected string
		ask             func(context.Context) (string, string, error)
	}
	for _, s := range []step{
		{"L3", "the data directory is complete and of system " + r.snap.SystemID, r.onDisk},
		{"L4", "replay reached " + r.restore.ExpectedEnd.LSN.String() + " and the target " + r.restore.Target.String(), r.replayed},
		{"purge", "no deleted project is found again", r.purged},
		{"L5", "every page of the cleanly stopped copy has its checksum", r.checksums},
		{"L7", "the copy holds the databases, roles, extensions and relations that the snapshot's inventory names", r.inventory},
		{"L6", "pg_amcheck finds every table and b-tree index consistent", r.amcheck},
		{"L8", fmt.Sprintf("%d checks answer as expected", len(r.def.Checks)), r.questions},
	} {
		if s.level != "purge" && !r.wants(s.level) || s.level == "L8" && len(r.def.Checks) == 0 {
			continue
		}
		if ctx.Err() != nil {
			r.fail(ctx, s.level, ctx.Err())
			return
		}
		r.phase(ctx, "check."+s.level, func(ctx context.Context) error {
			r.check(ctx, s.level, s.expected, s.ask)
			return nil
		})
		if r.rec.Failure != nil {
			return
		}
	}
	select {
	case <-r.room.Server.Done():
		r.rec.Checks = append(r.rec.Checks, Check{ID: "server", Verdict: failed, Class: ClassBackup, Expected: "it runs to the end", Observed: words("it ended by itself: %s", r.room.Server.LogTail())})
	default:
	}
}

func (r *run) programs() (sandbox.Programs, error) {
	p, err := sandbox.FindPrograms(r.restore.Major, r.def.Environment.Binaries)
	p.User = r.def.Environment.User
	return p, err
}

// onDisk compares the system identifier in pg_control with the snapshot's, by
// PostgreSQL's own program where there is one.
func (r *run) onDisk(ctx context.Context) (string, string, error) {
	p, err := r.programs()
	if err != nil {
		return "", "", err
	}
	var out strings.Builder
	var id string
	how := "pg_controldata"
	if p.Run(ctx, &out, how, "-D", r.scratch.data()) == nil {
		id = field(out.String(), "Database system identifier:")
	} else {
		c, _, err := control.ReadFile(filepath.Join(r.scratch.data(), "global", "pg_control"))
		if err != nil {
			return "", "", fmt.Errorf("%w: %w", restore.ErrIncomplete, err)
		}
		how, id = "pg_control", fmt.Sprint(c.SystemID)
	}
	if id != r.snap.SystemID {
		return failed, fmt.Sprintf("%s says system %s", how, id), nil
	}
	return passed, fmt.Sprintf("%s says system %s; %d files of %d bytes were written, each frame with its digest", how, id, r.room.Files, r.snap.RawBytes), nil
}

// field is the value on the line of pg_controldata that begins with name.
func field(text, name string) string {
	for _, line := range strings.Split(text, "\n") {
		if v, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// replayed compares where recovery ended with where it had to.
func (r *run) replayed(context.Context) (string, string, error) {
	res, t := r.room.Result, r.restore.Target
	saw := fmt.Sprintf("replay ended at %s", res.Reached.LSN)
	if !res.Reached.Time.IsZero() {
		saw += ", its last transaction of " + res.Reached.Time.UTC().Format("2006-01-02T15:04:05.000000Z")
	}
	switch {
	case !res.Complete || !restore.Arrived(res.Reached.LSN, r.restore.ExpectedEnd.LSN, r.restore.SegSize):
		return failed, saw + ": short of the expected end", nil
	case t.Kind == restore.AtTime && res.Reached.Time.After(t.Time):
		return failed, saw + ": behind the target", nil
	case t.Kind == restore.AtTime && res.Reached.Time.Before(r.restore.ExpectedEnd.Time) && r.restore.ExpectedEnd.Time.After(r.snap.FinishedAt):
		return failed, saw + ": the last commit before the target is of " + r.restore.ExpectedEnd.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), nil
	}
	return passed, saw, nil
}

// purged replays the tombstones once more: nothing may be found.
func (r *run) purged(ctx context.Context) (string, string, error) {
	p := &Purged{Applied: len(r.room.Result.Tombstones)}
	r.rec.Tombstones = p
	ids := map[string]bool{}
	for _, t := range r.room.Result.Tombstones {
		ids[t.ID] = true
		if t.Found {
			p.Found++
		}
	}
	if len(ids) == 0 {
		return passed, "no tombstone applies", nil
	}
	tombs, err := r.deps.Repo.Catalog.Tombstones(ctx, r.def.Cluster)
	if err != nil {
		return "", "", err
	}
	due := slices.DeleteFunc(tombs.Bodies(), func(t catalog.Tombstone) bool { return !ids[t.ID] })
	for i := range due { // by name: what the copy's history says of OIDs is the restore's to know
		due[i].OID = 0
	}
	again, err := r.replayer()(ctx, r.room.Server.Conn, due)
	if err != nil {
		return "", "", err
	}
	for _, t := range again {
		if t.Found {
			p.Residual++
		}
	}
	if p.Residual > 0 || len(due) != len(ids) {
		return failed, fmt.Sprintf("%d of %d deleted projects were found again", p.Residual, p.Applied), nil
	}
	return passed, fmt.Sprintf("%d tombstones applied, %d projects removed, none found again", p.Applied, p.Found), nil
}

// checksums stops the server cleanly, lets pg_checksums read every page, and
// starts it again in its room.
func (r *run) checksums(ctx context.Context) (string, string, error) {
	f := r.room.Header.Facts
	if f.ChecksumsStart == 0 || f.ChecksumsStop == 0 {
		return gap, "the cluster has no data checksums", nil
	}
	p, err := r.programs()
	if err != nil {
		return "", "", err
	}
	if err := r.room.Server.Stop(ctx, sandbox.Fast); err != nil {
		return "", "", err
	}
	var out strings.Builder
	checked := p.Run(ctx, &out, "pg_checksums", "--check", "-D", r.scratch.data())
	if err := r.restart(ctx, p); err != nil {
		return "", "", errors.Join(err, checked)
	}
	var exit *exec.ExitError
	switch {
	case checked == nil:
		return passed, squeeze(out.String()), nil
	case ctx.Err() != nil:
		return "", "", checked
	case errors.As(checked, &exit) && strings.Contains(out.String(), "Bad checksums:"):
		return failed, squeeze(out.String()) + "; " + checked.Error(), nil
	}
	return gap, checked.Error(), nil
}

func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

// restart starts the stopped server again, as closed as before.
func (r *run) restart(ctx context.Context, p sandbox.Programs) error {
	old := r.room.Server
	srv, err := sandbox.Start(ctx, sandbox.Config{
		Programs: p, DataDir: r.scratch.data(), SocketDir: old.SocketDir(), Keep: old.Room().Kept, Log: r.deps.ServerLog, Role: r.deps.Role,
	})
	if err != nil {
		return fmt.Errorf("starting the stopped copy again: %w", err)
	}
	r.room.Server = srv
	room := srv.Room()
	room.NoEgress = room.NoEgress && old.Room().NoEgress
	r.rec.Place.Room = &room
	return nil
}

// amcheck runs pg_amcheck over all databases. Extensions that it installs are
// the copy's alone.
func (r *run) amcheck(ctx context.Context) (string, string, error) {
	var out strings.Builder
	err := r.room.Server.Run(ctx, &out, "pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--rootdescend", "--no-password")
	text := squeeze(out.String())
	var exit *exec.ExitError
	switch {
	case err == nil:
		return passed, "nothing found: heap and b-tree, all indexed rows found again from the root", nil
	case ctx.Err() != nil:
		return "", "", err
	case errors.As(err, &exit) && exit.ExitCode() == 2:
		return failed, text, nil
	}
	return gap, "pg_amcheck could not run: " + err.Error() + "; " + text, nil
}

// questions asks the definition's own.
func (r *run) questions(ctx context.Context) (string, string, error) {
	wrong := []string{}
	for _, q := range r.def.Checks {
		verdict := r.check(ctx, "L8:"+q.Name, q.Expect, func(ctx context.Context) (string, string, error) {
			got, err := r.ask(ctx, q)
			if err != nil {
				return "", "", fmt.Errorf("%w: %w", errAnswer, err)
			}
			if got != q.Expect {
				return failed, got, nil
			}
			return passed, got, nil
		})
		sum := sha256.Sum256([]byte(q.SQL))
		r.rec.Checks[len(r.rec.Checks)-1].Input = hex.EncodeToString(sum[:])
		if verdict != passed {
			wrong = append(wrong, q.Name)
		}
	}
	if len(wrong) > 0 {
		return failed, "not as expected: " + strings.Join(wrong, ", "), nil
	}
	return passed, "all answered as expected", nil
}

// ask runs one query, which may write nothing, and gives its one answer as text.
func (r *run) ask(ctx context.Context, q Question) (string, error) {
	conn, err := r.room.Server.Conn(ctx, q.Database)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "SET default_transaction_read_only = on"); err != nil {
		return "", err
	}
	results, err := conn.PgConn().Exec(ctx, q.SQL).ReadAll()
	if err != nil {
		return "", err
	}
	var rows []*pgconn.Result
	for _, res := range results {
		if res.FieldDescriptions != nil {
			rows = append(rows, res)
		}
	}
	if len(rows) != 1 || len(rows[0].Rows) != 1 || len(rows[0].Rows[0]) != 1 {
		return "", errors.New("the query must answer one row of one column")
	}
	if rows[0].Rows[0][0] == nil {
		return "NULL", nil
	}
	return string(rows[0].Rows[0][0]), nil
}
