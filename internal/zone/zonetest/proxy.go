package zonetest

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fault is what a Proxy does to connections, new and old. The zero value passes
// everything on.
type Fault struct {
	Latency   time.Duration // before each piece of an answer
	Rate      int64         // bytes per second of an answer; 0 is unbounded
	Cut       bool          // connections close once CutAfter bytes of answers went through since Set
	CutAfter  int64
	CutNext   bool // the next answer is lost with its connection; the fault ends with it
	Reset     bool // connections are reset at once
	BlackHole bool // what is sent vanishes, and no answer comes
}

// Proxy is a TCP proxy on loopback that can break what goes through it. TLS
// passes through unopened, so the certificate of the server must be for
// loopback. It ends with the test.
type Proxy struct {
	Address string // of the proxy

	target   string
	listener net.Listener
	ctx      context.Context
	wg       sync.WaitGroup

	mu    sync.Mutex
	fault Fault
	// changed is closed and replaced by Set.
	changed chan struct{}
	passed  int64
	conns   map[net.Conn]bool
}

// NewProxy starts a proxy before target, a host:port or an https URL.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{
		Address: l.Addr().String(), target: strings.TrimPrefix(target, "https://"), listener: l, ctx: ctx,
		changed: make(chan struct{}), conns: map[net.Conn]bool{},
	}
	p.wg.Go(p.serve)
	t.Cleanup(func() {
		cancel()
		l.Close()
		p.closeAll(false)
		p.wg.Wait()
	})
	return p
}

// Endpoint is the proxy's address as an https URL.
func (p *Proxy) Endpoint() string { return "https://" + p.Address }

// Set makes f the fault from now on.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	p.fault, p.passed = f, 0
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
	if f.Reset {
		p.closeAll(true)
	}
}

func (p *Proxy) serve() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.handle(c) })
	}
}

func (p *Proxy) handle(client net.Conn) {
	if !p.track(client) {
		return
	}
	defer p.drop(client)
	server, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		return
	}
	if !p.track(server) {
		return
	}
	defer p.drop(server)
	var wg sync.WaitGroup
	wg.Go(func() { p.pass(server, client, false); client.Close(); server.Close() })
	p.pass(client, server, true)
	client.Close()
	server.Close()
	wg.Wait()
}

// pass copies from src to dst under the fault of the moment.
func (p *Proxy) pass(dst io.Writer, src io.Reader, answer bool) {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			keep, ok := p.admit(n, answer)
			if _, werr := dst.Write(buf[:keep]); werr != nil || !ok {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// admit waits as the fault demands and returns how many of n bytes go through,
// and whether the connection goes on.
func (p *Proxy) admit(n int, answer bool) (keep int, ok bool) {
	p.mu.Lock()
	f, changed := p.fault, p.changed
	if f.BlackHole {
		p.mu.Unlock()
		return 0, !answer || p.vanish(changed)
	}
	keep, ok = n, true
	if answer && f.CutNext {
		p.fault.CutNext = false
		p.mu.Unlock()
		return 0, false
	}
	if answer {
		if f.Cut && p.passed+int64(n) > f.CutAfter {
			keep, ok = int(max(0, f.CutAfter-p.passed)), false
		}
		p.passed += int64(keep)
	}
	p.mu.Unlock()
	wait := time.Duration(0)
	if answer {
		wait = f.Latency
		if f.Rate > 0 {
			wait += time.Duration(int64(keep) * int64(time.Second) / f.Rate)
		}
	}
	return keep, p.pause(wait) && ok
}

// vanish holds an answer back until the fault changes; a connection that lost
// bytes is not sound then and ends.
func (p *Proxy) vanish(changed <-chan struct{}) bool {
	select {
	case <-changed:
	case <-p.ctx.Done():
	}
	return false
}

func (p *Proxy) pause(d time.Duration) bool {
	if d <= 0 {
		return p.ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

func (p *Proxy) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault.Reset || p.ctx.Err() != nil {
		reset(c)
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	c.Close()
}

func (p *Proxy) closeAll(hard bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if hard {
			reset(c)
		} else {
			c.Close()
		}
	}
}

// reset closes with RST instead of FIN.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = errors.Join(tcp.SetLinger(0), tcp.Close())
		return
	}
	c.Close()
}
