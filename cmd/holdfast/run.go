package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/internal/thin"
)

// version is set when the program is linked.
var version = "devel"

// env is what every command has: its flags and where it speaks.
type env struct {
	config     string
	repository string
	output     string
	quiet      bool
	in         io.Reader
	out, err   io.Writer
}

// run carries out one command line and returns its exit code.
func run(args []string, in io.Reader, out, errw io.Writer) (code int) {
	if fetches(args) {
		defer doubtPanic(errw, &code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	e := &env{in: in, out: out, err: errw}
	root := e.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	var quiet silent
	if !errors.As(err, &quiet) {
		explain(errw, err)
	}
	code = codeOf(err)
	if isUsage(err) {
		code = exitUsage
	}
	if fetches(args) {
		return fetchCode(err)
	}
	return code
}

// silent ends a command with an exit code when all was said already.
type silent struct{ code int }

func (s silent) Error() string { return fmt.Sprintf("exit %d", s.code) }

// isUsage recognises what cobra says of a wrong command line.
func isUsage(err error) bool {
	for _, p := range []string{"unknown command", "accepts ", "requires ", "invalid argument", "required flag", "if any flags in the group", "at least one of the flags in the group"} {
		if strings.HasPrefix(err.Error(), p) {
			return true
		}
	}
	return false
}

func (e *env) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "holdfast",
		Short:         "Keep PostgreSQL recoverable, and prove it",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if e.output != "text" && e.output != "json" {
				return usage("--output %s: want text or json", e.output)
			}
			return nil
		},
	}
	defaultConfig := os.Getenv("HOLDFAST_CONFIG")
	if defaultConfig == "" {
		defaultConfig = thin.DefaultConfig
	}
	f := root.PersistentFlags()
	f.StringVar(&e.config, "config", defaultConfig, "configuration `FILE` (or HOLDFAST_CONFIG)")
	f.StringVar(&e.repository, "repository", "", "zones and trusted signers alone, from `FILE`, instead of a configuration")
	f.StringVar(&e.output, "output", "text", "text or json")
	f.BoolVar(&e.quiet, "quiet", false, "no progress")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		remedy := fmt.Sprintf("`%s --help` lists the flags", cmd.CommandPath())
		if strings.HasSuffix(err.Error(), "json") || strings.HasSuffix(err.Error(), "-o") {
			remedy = "JSON is had with --output json"
		}
		return &fault{exit: exitUsage, err: err, remedy: remedy}
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	e.addCommands(root)
	return root
}

// addCommands adds every command, group by group as in docs/commands.md.
func (e *env) addCommands(root *cobra.Command) {
	root.AddCommand(
		e.initCommand(), e.checkCommand(), e.configCommand(), e.keysCommand(), e.zoneCommand(),
		e.daemonCommand(), e.watchCommand(), e.witnessCommand(), e.lineageCommand(), e.clusterCommand(), e.statusCommand(),
		e.snapshotCommand(), e.walCommand(),
		e.restoreCommand(),
		e.retentionCommand(), e.holdCommand(), e.approveCommand(),
		e.projectCommand(), e.purgeCommand(),
		e.drillCommand(), e.ledgerCommand(), e.evidenceCommand(),
		e.incidentCommand(), e.catalogCommand(), e.versionCommand(),
	)
}

// load reads the configuration.
func (e *env) load() (*configs.Config, error) {
	cfg, err := configs.Load(e.config)
	if err != nil {
		return nil, &fault{exit: exitUsage, err: err, remedy: "`holdfast config example` prints a commented configuration; name yours with --config FILE"}
	}
	boundMemory(int64(cfg.Node.Limits.Memory))
	return cfg, nil
}

// print writes doc as JSON, or text.
func (e *env) print(doc any, text func(io.Writer)) error {
	if e.output == "json" {
		return printJSON(e.out, doc)
	}
	text(e.out)
	return nil
}

func printJSON(out io.Writer, doc any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

// call carries out op: by the daemon when one answers on the configuration's
// socket, else here, by what here makes of the opened configuration.
func call[In, Out any](ctx context.Context, e *env, op server.Op[In, Out], in In, here func(*world, context.Context, In) (Out, error)) (out Out, err error) {
	if e.repository == "" {
		cfg, err := e.load()
		if err != nil {
			return out, err
		}
		client, err := server.Dial(ctx, cfg.Node.Socket)
		if err == nil {
			return server.Call(ctx, client, op, in)
		}
	}
	w, err := e.open(ctx)
	if err != nil {
		return out, err
	}
	defer w.close()
	return here(w, ctx, in)
}
