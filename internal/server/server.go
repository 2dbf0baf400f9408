// Package server is the versioned HTTP API: spoken on the daemon's Unix socket
// from the first command on, described by OpenAPI 3.1 at /openapi.json.
//
// An operation is one value, Op, known to both sides: the daemon serves it, the
// command line calls it, and what it does is a function that the caller of Serve
// gives. The package decides nothing and keeps nothing. It never listens beyond
// loopback (sign-in comes with it), never answers with a secret, and answers
// every failure with a problem document (RFC 9457) that says what was being done,
// to what, why it failed and what to do next.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// Op is one operation: In's fields carry `path`, `query` or (field Body) the
// request's JSON; Out is the answer's JSON document.
type Op[In, Out any] struct {
	ID      string
	Method  string
	Path    string
	Summary string
}

// Server serves operations. Make one with [New], add with [Serve], then Run.
type Server struct {
	mux *http.ServeMux
	api huma.API
}

// New makes a server that describes itself as version.
func New(version string) *Server {
	huma.NewError = newProblem
	cfg := huma.DefaultConfig("Holdfast", version)
	cfg.DocsPath = "" // its page would load a program from elsewhere
	cfg.SchemasPath = ""
	cfg.CreateHooks = nil // no $schema field in documents
	cfg.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	mux := http.NewServeMux()
	return &Server{mux: mux, api: humago.New(mux, cfg)}
}

// schemaName tells types of one name in two packages apart.
func schemaName(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	name, pkg := huma.DefaultSchemaNamer(t, hint), path.Base(t.PkgPath())
	if t.PkgPath() == "" || pkg == "main" {
		return name
	}
	return strings.ToUpper(pkg[:1]) + pkg[1:] + name
}

// Handle adds a plain handler (metrics, health).
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// OpenAPI is the description, as JSON.
func (s *Server) OpenAPI() ([]byte, error) { return s.api.OpenAPI().MarshalJSON() }

type answer[Out any] struct{ Body Out }

// Serve adds op, carried out by do. An error of do that has a method
// Problem() Problem is answered as that; any other is status 500, exit 1.
func Serve[In, Out any](s *Server, op Op[In, Out], do func(context.Context, In) (Out, error)) {
	huma.Register(s.api, huma.Operation{
		OperationID: op.ID, Method: op.Method, Path: op.Path, Summary: op.Summary,
		MaxBodyBytes: 1 << 20,
	}, func(ctx context.Context, in *In) (*answer[Out], error) {
		out, err := do(ctx, *in)
		if err != nil {
			return nil, asProblem(err)
		}
		return &answer[Out]{out}, nil
	})
}

// ListenUnix makes the socket's directory and the socket, for its owner and
// group alone. A socket that nobody answers on is taken over; one that is
// answered on is an error.
func ListenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("making the socket's directory: %w", err)
	}
	dialer := net.Dialer{Timeout: time.Second}
	if c, err := dialer.DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("listening on %s: another daemon answers there; stop it first, or set another node.socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the stale socket %s: %w", path, err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, fmt.Errorf("restricting %s: %w", path, err)
	}
	return l, nil
}

// drain is how long a stopping server waits for its requests.
const drain = 10 * time.Second

// Run serves on the listeners until ctx ends, then lets requests under way
// finish for a bounded time.
func (s *Server) Run(ctx context.Context, listeners ...net.Listener) error {
	srv := &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	errs := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { errs <- srv.Serve(l) }()
	}
	var first error
	left := len(listeners)
	select {
	case <-ctx.Done():
	case first = <-errs:
		left--
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		first = errors.Join(first, srv.Close())
	}
	for ; left > 0; left-- {
		if err := <-errs; !errors.Is(err, http.ErrServerClosed) {
			first = errors.Join(first, err)
		}
	}
	if first != nil && !errors.Is(first, http.ErrServerClosed) {
		return fmt.Errorf("serving the API: %w", first)
	}
	return nil
}
