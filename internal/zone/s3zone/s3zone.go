// Package s3zone is a zone in an S3 bucket.
//
// An object is one PutObject of bytes held in memory: conditional, with a CRC32C
// that the server checks and the SHA-256 in its metadata. There are no multipart
// uploads, so nothing half-made can be left behind. It never asks the
// environment for credentials, endpoints or settings. It fails with
// zone.ErrUnreachable where the server does not answer, refuses us or errs,
// after a bounded number of tries; a refusal of ours keeps the server's code.
package s3zone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Keys are S3 credentials. They never print.
type Keys struct {
	AccessKey, SecretKey string
	SessionToken         string // "" for long-lived keys
}

// String implements fmt.Stringer without the secrets.
func (k Keys) String() string { return "keys of " + k.AccessKey }

// GoString implements fmt.GoStringer without the secrets.
func (k Keys) GoString() string { return k.String() }

// Retrieve implements aws.CredentialsProvider.
func (k Keys) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: k.AccessKey, SecretAccessKey: k.SecretKey, SessionToken: k.SessionToken, Source: "holdfast"}, nil
}

// Config says where the bucket is and how to speak to it.
type Config struct {
	Endpoint  string // "" for AWS in Region, else an https (or http) URL
	Region    string
	Bucket    string
	Prefix    string // of every key, without slashes at its ends; may be ""
	PathStyle bool
	CA        []byte // PEM; nil for the system's
	// Credentials sign all requests but those under ledger/, which
	// LedgerCredentials sign where they are given: a node that only reads the
	// repository still writes its own ledger.
	Credentials       aws.CredentialsProvider
	LedgerCredentials aws.CredentialsProvider
	// DeleteCredentials sign removals of versions, so that the others need no right
	// to delete; nil: the ones of the object's other requests.
	DeleteCredentials aws.CredentialsProvider
	LockMode          string        // "", "governance" or "compliance"
	Timeout           time.Duration // for a connection and for headers; default 30 s
	Retries           int           // tries in all; default 3
}

// Driver is a zone.Driver over one bucket and prefix.
type Driver struct {
	bucket, prefix string
	mode           types.ObjectLockMode
	client, ledger *s3.Client
	remover        *s3.Client // nil: the object's own client
	transport      *http.Transport
}

var _ zone.Driver = (*Driver)(nil)

// New checks the configuration and asks the server nothing.
func New(c Config) (*Driver, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("S3 zone in bucket %q: %w", c.Bucket, err)
	}
	transport, err := c.transport()
	if err != nil {
		return nil, fmt.Errorf("S3 zone in bucket %q: %w", c.Bucket, err)
	}
	d := &Driver{bucket: c.Bucket, mode: types.ObjectLockMode(strings.ToUpper(c.LockMode)), transport: transport}
	if c.Prefix != "" {
		d.prefix = c.Prefix + "/"
	}
	d.client = c.client(transport, c.Credentials)
	d.ledger = d.client
	if c.LedgerCredentials != nil {
		d.ledger = c.client(transport, c.LedgerCredentials)
	}
	if c.DeleteCredentials != nil {
		d.remover = c.client(transport, c.DeleteCredentials)
	}
	return d, nil
}

func (c *Config) check() error {
	if c.Bucket == "" || c.Region == "" {
		return errors.New("want a bucket and a region")
	}
	if c.Credentials == nil {
		return errors.New("want credentials: keys from a file or a systemd credential")
	}
	switch c.LockMode {
	case "", "governance", "compliance":
	default:
		return fmt.Errorf("lock mode %q: want governance, compliance or none", c.LockMode)
	}
	if c.Prefix != "" {
		if _, err := durable.SafeJoin("/", c.Prefix); err != nil {
			return fmt.Errorf("prefix: %w", err)
		}
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "https" && u.Scheme != "http") {
			return errors.New("endpoint: want https://host[:port] without a user")
		}
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Retries <= 0 {
		c.Retries = 3
	}
	return nil
}

func (c *Config) transport() (*http.Transport, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != nil {
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(c.CA) {
			return nil, errors.New("ca: holds no PEM certificate")
		}
	}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: min(c.Timeout, 10*time.Second)}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   min(c.Timeout, 10*time.Second),
		ResponseHeaderTimeout: c.Timeout,
		MaxIdleConnsPerHost:   32,
		IdleConnTimeout:       90 * time.Second,
	}, nil
}

func (c *Config) client(transport *http.Transport, credentials aws.CredentialsProvider) *s3.Client {
	opt := s3.Options{
		Region:       c.Region,
		UsePathStyle: c.PathStyle,
		Credentials:  credentials,
		HTTPClient:   &http.Client{Transport: transport},
		// Without the SDK's config package both are off, and a rotten object
		// would be read without an error.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts = c.Retries
			o.MaxBackoff = 2 * time.Second
			o.RateLimiter = ratelimit.None
		}),
		DisableLogOutputChecksumValidationSkipped: true,
	}
	if c.Endpoint != "" {
		opt.BaseEndpoint = aws.String(c.Endpoint)
	}
	return s3.New(opt)
}

// Close implements io.Closer.
func (d *Driver) Close() error {
	d.transport.CloseIdleConnections()
	return nil
}

// at is the client and key for an object's name.
func (d *Driver) at(name string) (*s3.Client, *string, error) {
	if _, err := durable.SafeJoin("/", name); err != nil || !utf8.ValidString(name) {
		return nil, nil, fmt.Errorf("object name %q: want a clean relative path in UTF-8", name)
	}
	if strings.HasPrefix(name, "ledger/") {
		return d.ledger, aws.String(d.prefix + name), nil
	}
	return d.client, aws.String(d.prefix + name), nil
}
