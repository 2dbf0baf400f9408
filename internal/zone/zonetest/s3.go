package zonetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/s3zone"
)

// S3Server is a versitygw process that serves DataDir over TLS on loopback. It
// ends with the test.
type S3Server struct {
	Endpoint, Bucket, Region string // Bucket has Object Lock, hence versions
	AccessKey, SecretKey     string
	CA                       []byte // PEM
	DataDir                  string // <DataDir>/<bucket>/<key> holds an object's bytes

	t       testing.TB
	program string
	dir     string
	address string
	buckets atomic.Int32

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
	log    bytes.Buffer
}

// StartS3 starts n servers, each with its own data and keys.
func StartS3(t testing.TB, n int) []*S3Server {
	t.Helper()
	program, err := findProgram("versitygw")
	if err != nil {
		t.Fatal(err)
	}
	servers := make([]*S3Server, n)
	for i := range servers {
		dir := t.TempDir()
		s := &S3Server{
			t: t, program: program, dir: dir, DataDir: filepath.Join(dir, "data"),
			Region: fmt.Sprintf("zone-%d", i+1), AccessKey: fmt.Sprintf("zone%d", i+1), SecretKey: fmt.Sprintf("zone%d-secret-key", i+1),
		}
		if s.CA, err = writeCertificate(dir); err != nil {
			t.Fatal(err)
		}
		s.boot()
		t.Cleanup(s.Kill)
		s.Bucket = s.NewBucket(t, true)
		servers[i] = s
	}
	return servers
}

// findProgram looks in $HOLDFAST_TOOLS, then in the module's .tools/bin, then in
// PATH.
func findProgram(name string) (string, error) {
	if dir := os.Getenv("HOLDFAST_TOOLS"); dir != "" {
		if p := filepath.Join(dir, name); isProgram(p) {
			return p, nil
		}
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if p := filepath.Join(dir, ".tools", "bin", name); isProgram(p) {
			return p, nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is missing: run `make tools` (%w)", name, err)
	}
	return p, nil
}

func isProgram(p string) bool {
	info, err := os.Stat(p)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// boot starts the server on a free port, which another process may take between
// our finding it and the server's: then the next is tried.
func (s *S3Server) boot() {
	s.t.Helper()
	for _, sub := range []string{"data", "versions", "iam"} {
		if err := os.MkdirAll(filepath.Join(s.dir, sub), 0o700); err != nil {
			s.t.Fatal(err)
		}
	}
	var err error
	for range 5 {
		if s.address, err = freeAddress(); err != nil {
			s.t.Fatal(err)
		}
		s.Endpoint = "https://" + s.address
		if err = s.start(); err == nil {
			return
		}
	}
	s.t.Fatalf("start versitygw: %v\n%s", err, s.log.String())
}

func freeAddress() (string, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// Start starts a killed server again, on the same address and data.
func (s *S3Server) Start() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatalf("start versitygw: %v\n%s", err, s.log.String())
	}
}

func (s *S3Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return errors.New("it runs already")
	}
	in := func(name string) string { return filepath.Join(s.dir, name) }
	cmd := exec.Command(s.program, "--quiet", "--keep-alive", "--port", s.address, "--region", s.Region, //nolint:noctx // it ends by Kill
		"--cert", in("server.pem"), "--key", in("server.key"), "--health", "/health", "--iam-dir", in("iam"),
		"posix", "--versioning-dir", in("versions"), in("data"))
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+s.AccessKey, "ROOT_SECRET_ACCESS_KEY="+s.SecretKey)
	s.log.Reset()
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed, as a rule
		close(exited)
	}()
	if err := s.ready(exited); err != nil {
		_ = cmd.Process.Kill()
		<-exited
		return err
	}
	s.cmd, s.exited = cmd, exited
	return nil
}

func (s *S3Server) ready(exited <-chan struct{}) error {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA)
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint+"/health", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-exited:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", errors.Join(ctx.Err(), err))
		case <-tick.C:
		}
	}
}

// Kill ends the server as a power cut would (SIGKILL); what it holds stays.
func (s *S3Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
}

// Pause hangs the server (SIGSTOP): it accepts connections and says nothing.
func (s *S3Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *S3Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *S3Server) signal(sig syscall.Signal) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		s.t.Fatalf("%s to a server that does not run", sig)
	}
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Config reaches the server's own bucket with governance locks; change what you
// need.
func (s *S3Server) Config() s3zone.Config {
	return s3zone.Config{
		Endpoint: s.Endpoint, Region: s.Region, Bucket: s.Bucket, PathStyle: true, CA: s.CA,
		Credentials: s3zone.Keys{AccessKey: s.AccessKey, SecretKey: s.SecretKey},
		LockMode:    "governance", Timeout: 10 * time.Second, Retries: 2,
	}
}

// Driver is a driver of the server's own bucket.
func (s *S3Server) Driver(t testing.TB) zone.Driver {
	t.Helper()
	return Dial(t, s.Config())
}

// Dial is s3zone.New that ends with the test.
func Dial(t testing.TB, c s3zone.Config) *s3zone.Driver {
	t.Helper()
	d, err := s3zone.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// NewBucket makes a bucket, with Object Lock (and versions) or without both, and
// returns its name.
func (s *S3Server) NewBucket(t testing.TB, lock bool) string {
	t.Helper()
	name := fmt.Sprintf("holdfast-%d", s.buckets.Add(1))
	in := &s3.CreateBucketInput{Bucket: &name}
	if lock {
		in.ObjectLockEnabledForBucket = aws.Bool(true)
	}
	if _, err := s.Client(t).CreateBucket(t.Context(), in); err != nil {
		t.Fatalf("make bucket %s: %v", name, err)
	}
	if lock {
		_, err := s.Client(t).PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
			Bucket: &name, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
		})
		if err != nil {
			t.Fatalf("version bucket %s: %v", name, err)
		}
	}
	return name
}

// Client is a plain client with all rights, for what a driver does not do.
func (s *S3Server) Client(t testing.TB) *s3.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(s.Endpoint), Region: s.Region, UsePathStyle: true, HTTPClient: &http.Client{Transport: transport},
		Credentials: s3zone.Keys{AccessKey: s.AccessKey, SecretKey: s.SecretKey},
	})
}

// Path is the file of an object in the server's own bucket, for rotting it.
func (s *S3Server) Path(name string) string { return filepath.Join(s.DataDir, s.Bucket, name) }
