package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"
)

// Client calls a server over its Unix socket.
type Client struct {
	socket string
	http   *http.Client
}

// ErrNoDaemon means that nobody answers on the socket.
var ErrNoDaemon = errors.New("no daemon answers")

// Dial makes a client if a daemon answers on socket, else ErrNoDaemon.
func Dial(ctx context.Context, socket string) (*Client, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%w on %s: %w", ErrNoDaemon, socket, err)
	}
	conn.Close()
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
	}}}, nil
}

// Call carries out op on the daemon. A failure that the daemon told is a *Problem.
func Call[In, Out any](ctx context.Context, c *Client, op Op[In, Out], in In) (Out, error) {
	var out Out
	req, err := request(ctx, op.Method, op.Path, in)
	if err != nil {
		return out, fmt.Errorf("asking the daemon for %s: %w", op.ID, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return out, fmt.Errorf("asking the daemon on %s for %s: %w", c.socket, op.ID, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return out, fmt.Errorf("reading the daemon's answer to %s: %w", op.ID, err)
	}
	if resp.StatusCode >= 300 {
		p := NewProblem(1, fmt.Sprintf("the daemon answered %s to %s", resp.Status, op.ID), "")
		if err := json.Unmarshal(data, p); err != nil {
			return out, fmt.Errorf("%w: %s", p, data)
		}
		for _, e := range p.Errors {
			p.Detail += "; " + e.Error()
		}
		return out, p
	}
	if err := json.Unmarshal(data, &out); err != nil {
		return out, fmt.Errorf("reading the daemon's answer to %s: %w", op.ID, err)
	}
	return out, nil
}

// request puts in's fields where their tags say, as huma reads them.
func request(ctx context.Context, method, path string, in any) (*http.Request, error) {
	query := url.Values{}
	var body io.Reader
	v := reflect.ValueOf(in)
	for i := range v.NumField() {
		f, val := v.Type().Field(i), v.Field(i)
		if f.Name == "Body" {
			data, err := json.Marshal(val.Interface())
			if err != nil {
				return nil, err
			}
			body = bytes.NewReader(data)
			continue
		}
		text := fmt.Sprint(val.Interface())
		if at, ok := val.Interface().(time.Time); ok {
			text = at.Format(time.RFC3339Nano)
		}
		if name, ok := f.Tag.Lookup("path"); ok {
			path = strings.ReplaceAll(path, "{"+name+"}", url.PathEscape(text))
		} else if name, ok := f.Tag.Lookup("query"); ok && !val.IsZero() {
			query.Set(name, text)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://holdfast"+path+"?"+query.Encode(), body)
	if err == nil && body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, err
}
