package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// witnesses are those that the configuration names for this node's ledger.
func (n *node) witnesses() (*ledger.Cosigners, error) {
	if len(n.cfg.Repository.Witnesses) == 0 {
		return nil, nil //nolint:nilnil // none
	}
	keys := map[string]string{}
	for _, w := range n.cfg.Repository.Witnesses {
		keys[w.URL] = w.Key
	}
	out, err := ledger.NewCosigners(keys)
	if err != nil {
		return nil, usage("repository.witnesses: %w", err)
	}
	var seen sync.Map // url: whether it cosigned last
	out.Told = func(url string, err error) {
		key := "witness/" + url
		if before, known := seen.Swap(url, err == nil); known && before == (err == nil) {
			return
		}
		if err == nil {
			n.settle(context.Background(), key, "it cosigned a checkpoint")
			return
		}
		n.raise(context.Background(), incident.Incident{
			Key: key, Severity: "warning", Title: "the witness " + url + " does not cosign", Detail: err.Error(),
			Remedy: "checkpoints go to the zones without it; bring it back, or take it out of repository.witnesses",
		})
	}
	return out, nil
}

func (e *env) witnessCommand() *cobra.Command {
	var key, state, listen, repository, cert, certKey string
	var logs []string
	cmd := &cobra.Command{
		Use: "witness", Short: "Cosign the checkpoints of a repository's ledgers, so that none can show two histories", Args: cobra.NoArgs,
		Long: "Run it where the nodes' keepers cannot reach: it takes checkpoints by HTTP (c2sp.org/tlog-witness) and\ncosigns each that continues the one before of its log. It keeps one file a log, LOG.checkpoint in --state,\nwhich `evidence verify --known` takes. It prints its verifier key, for repository.witnesses of the nodes.",
		RunE: func(c *cobra.Command, _ []string) error {
			w, vkey, err := newWitness(key, state, repository, logs)
			if err != nil {
				return err
			}
			l, err := witnessListener(c.Context(), listen, cert != "")
			if err != nil {
				return err
			}
			if err := e.print(map[string]string{"key": vkey, "listen": l.Addr().String()}, func(out io.Writer) { fmt.Fprintln(out, vkey) }); err != nil {
				return err
			}
			return serveWitness(c.Context(), l, w, cert, certKey)
		},
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "signing key `FILE`, as `keys new signing` makes it")
	f.StringVar(&state, "state", "", "`DIR` for the checkpoints that were cosigned; losing it loses what was witnessed")
	f.StringVar(&listen, "listen", "127.0.0.1:8421", "`ADDRESS`; beyond loopback with --tls-cert")
	f.StringVar(&repository, "repository-id", "", "the repository's `ID`, as holdfast.json of its zones says")
	f.StringArrayVar(&logs, "log", nil, "verifier key `VKEY` of a node that writes a ledger; may be repeated")
	f.StringVar(&cert, "tls-cert", "", "certificate `FILE`")
	f.StringVar(&certKey, "tls-key", "", "its key's `FILE`")
	cmd.MarkFlagsRequiredTogether("tls-cert", "tls-key")
	for _, name := range []string{"key", "state", "repository-id", "log"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return cmd
}

func newWitness(key, state, repository string, logs []string) (*ledger.Witness, string, error) {
	text, err := os.ReadFile(key)
	if err != nil {
		return nil, "", usage("--key: %w", err)
	}
	signer, vkey, err := seal.LoadCosigner(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, "", usage("--key %s: %w", key, err)
	}
	trust, err := trustKeys(logs)
	if err != nil {
		return nil, "", err
	}
	if err := durable.MkdirAll(state, 0o700); err != nil {
		return nil, "", fmt.Errorf("making the witness's directory: %w", err)
	}
	return &ledger.Witness{Dir: state, Repository: repository, Trust: trust, Signer: signer, Now: time.Now}, vkey, nil
}

func witnessListener(ctx context.Context, addr string, secure bool) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, usage("--listen %s: %w", addr, err)
	}
	if ip := net.ParseIP(host); !secure && (ip == nil || !ip.IsLoopback()) && host != "localhost" {
		return nil, usage("--listen %s: beyond loopback it wants --tls-cert and --tls-key", addr)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return l, nil
}

func say(rw http.ResponseWriter, a ledger.Answer) {
	rw.Header().Set("Content-Type", a.Type)
	rw.WriteHeader(a.Status)
	_, _ = rw.Write(a.Body) // who asked is gone
}

// maxAdd bounds a request: 63 hashes and a checkpoint.
const maxAdd = 64 << 10

func serveWitness(ctx context.Context, l net.Listener, w *ledger.Witness, cert, certKey string) error {
	log := daemonLogger()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", func(rw http.ResponseWriter, q *http.Request) {
		a := ledger.Answer{Status: http.StatusRequestEntityTooLarge}
		if body, err := io.ReadAll(http.MaxBytesReader(rw, q.Body, maxAdd)); err == nil {
			a = w.AddCheckpoint(body)
		}
		if a.Status != http.StatusOK && a.Status != http.StatusConflict {
			log.Warn("a checkpoint was not cosigned", zap.Int("status", a.Status), zap.ByteString("why", a.Body))
		}
		say(rw, a)
	})
	mux.HandleFunc("GET "+ledger.LatestPath+"{log}", func(rw http.ResponseWriter, q *http.Request) { say(rw, w.Latest(q.PathValue("log"))) })
	s := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = s.Shutdown(stop) // Serve tells
	})()
	sdNotify(daemon.SdNotifyReady)
	serve := s.Serve
	if cert != "" {
		serve = func(l net.Listener) error { return s.ServeTLS(l, cert, certKey) }
	}
	err := serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving as a witness: %w", err)
}
