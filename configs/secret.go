package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// maxSecret bounds what [Secret.Load] reads: keys and certificates are small.
const maxSecret = 1 << 20

// Secret says where a secret is: exactly one of a file, an environment variable
// and a systemd credential. It never holds the secret itself, so printing one
// shows the place alone.
type Secret struct {
	File       string `yaml:"file" json:"file,omitempty" doc:"Absolute path of a file that holds it."`
	Env        string `yaml:"env" json:"env,omitempty" doc:"Environment variable that holds it."`
	Credential string `yaml:"credential" json:"credential,omitempty" doc:"systemd credential (LoadCredential=) that holds it."`
}

// String is where the secret is, never what it is.
func (s Secret) String() string {
	switch {
	case s.File != "":
		return "file " + s.File
	case s.Env != "":
		return "environment variable " + s.Env
	case s.Credential != "":
		return "credential " + s.Credential
	}
	return "no secret"
}

// Load reads the secret, without the line break at its end. An empty secret is
// an error: it is what a half-made file gives.
func (s Secret) Load() ([]byte, error) {
	value, err := s.read()
	if err != nil {
		return nil, fmt.Errorf("reading the secret from %v: %w", s, err)
	}
	value = bytes.TrimRight(value, "\r\n")
	if len(value) == 0 {
		return nil, fmt.Errorf("reading the secret from %v: it is empty", s)
	}
	return value, nil
}

func (s Secret) read() ([]byte, error) {
	switch {
	case s.File != "":
		return readBounded(s.File)
	case s.Env != "":
		value, ok := os.LookupEnv(s.Env)
		if !ok {
			return nil, errors.New("the variable is not set in this process's environment")
		}
		return []byte(value), nil
	case s.Credential != "":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return nil, errors.New("CREDENTIALS_DIRECTORY is not set: run under systemd with LoadCredential=, or name a file")
		}
		return readBounded(filepath.Join(dir, s.Credential))
	}
	return nil, errors.New("it names neither file, env nor credential")
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	value, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(value) > maxSecret {
		err = fmt.Errorf("it is larger than %v", Size(maxSecret))
	}
	return value, err
}

// Credentials says how an S3 zone is signed in to: by the machine's role
// (Kind "instance"), by a web identity token (Kind "web_identity"), or by a key
// pair in a file or systemd credential (Kind "").
type Credentials struct {
	Kind       string `yaml:"-" json:"kind,omitempty"`
	File       string `yaml:"file" json:"file,omitempty" doc:"Absolute path of a file with access_key_id and secret_access_key."`
	Credential string `yaml:"credential" json:"credential,omitempty" doc:"systemd credential with access_key_id and secret_access_key."`
}

const credentialsMeant = "instance, web_identity, {file: …} or {credential: …}"

func (c *Credentials) parseScalar(text string) error {
	if text != "instance" && text != "web_identity" {
		return errors.New(credentialsMeant)
	}
	*c = Credentials{Kind: text}
	return nil
}

// String is how the zone is signed in to, never a key.
func (c Credentials) String() string {
	if c.Kind != "" {
		return c.Kind
	}
	return Secret{File: c.File, Credential: c.Credential}.String()
}

// KeyPair is an S3 access key. Its formats never show the secret half.
type KeyPair struct {
	AccessKey, SecretKey, SessionToken string
}

// Format shows the public half whatever the verb.
func (k KeyPair) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "access key %s", k.AccessKey) }

// MarshalJSON shows the public half alone.
func (k KeyPair) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"access_key_id":%q}`, k.AccessKey), nil
}

// Load reads the key pair; kinds "instance" and "web_identity" have none.
func (c Credentials) Load() (KeyPair, error) {
	if c.Kind != "" {
		return KeyPair{}, fmt.Errorf("credentials %q hold no key pair: %w", c.Kind, errors.ErrUnsupported)
	}
	text, err := Secret{File: c.File, Credential: c.Credential}.Load()
	if err != nil {
		return KeyPair{}, err
	}
	pair, err := parseKeyPair(string(text))
	if err != nil {
		return KeyPair{}, fmt.Errorf("reading the key pair from %v: %w", c, err)
	}
	return pair, nil
}

// parseKeyPair reads NAME = VALUE lines; the names may have the prefix aws_, and
// one [profile] may stand before them, so that an AWS credentials file serves.
func parseKeyPair(text string) (KeyPair, error) {
	var pair KeyPair
	fields := map[string]*string{"access_key_id": &pair.AccessKey, "secret_access_key": &pair.SecretKey, "session_token": &pair.SessionToken}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' || line[0] == '[' {
			continue
		}
		// The line itself is not shown: it may be the secret.
		name, value, ok := strings.Cut(line, "=")
		field := fields[strings.TrimPrefix(strings.TrimSpace(name), "aws_")]
		if !ok || field == nil {
			return KeyPair{}, fmt.Errorf("line %d: want access_key_id = …, secret_access_key = … or session_token = …", i+1)
		}
		if *field != "" {
			return KeyPair{}, fmt.Errorf("line %d: a second value of %s: keep one key pair in a file", i+1, strings.TrimSpace(name))
		}
		*field = strings.TrimSpace(value)
	}
	if pair.AccessKey == "" || pair.SecretKey == "" {
		return KeyPair{}, errors.New("want both access_key_id = … and secret_access_key = …")
	}
	return pair, nil
}

func (j *Jobs) parseScalar(text string) error {
	if text != "sqlite" {
		return errors.New("sqlite or {postgres: {file: …}}")
	}
	*j = Jobs{}
	return nil
}
