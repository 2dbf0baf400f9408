package postgres

import (
	"context"
	"slices"
	"strconv"
	"strings"
)

// Platform is what a server was built for: its files can be used by servers of the
// same architecture alone. What is not known is empty.
type Platform struct {
	Architecture string // as x86_64, aarch64, ppc64le
	WordBits     int
	ByteOrder    string // little | big
	OS           string // as linux-gnu, linux-musl, darwin
}

// architectures are other names of one, as build triplets and headers of programs have
// them.
var architectures = map[string]string{
	"amd64": "x86_64", "arm64": "aarch64", "powerpc64le": "ppc64le", "powerpc64": "ppc64",
	"i386": "x86", "i486": "x86", "i586": "x86", "i686": "x86",
}

var byteOrders = map[string][]string{
	"little": {"x86_64", "x86", "aarch64", "arm", "ppc64le", "riscv64", "loongarch64"},
	"big":    {"ppc64", "s390x"},
}

// NewPlatform is the platform of an architecture by any of its names.
func NewPlatform(architecture string, wordBits int, os string) Platform {
	if name := architectures[architecture]; name != "" {
		architecture = name
	}
	if strings.HasPrefix(architecture, "armv") {
		architecture = "arm"
	}
	p := Platform{Architecture: architecture, WordBits: wordBits, OS: os}
	for order, names := range byteOrders {
		if slices.Contains(names, architecture) {
			p.ByteOrder = order
		}
	}
	return p
}

// ParsePlatform reads what version() says, as "PostgreSQL 15.18 (Debian …) on
// x86_64-pc-linux-gnu, compiled by gcc …, 64-bit".
func ParsePlatform(version string) Platform {
	_, rest, _ := strings.Cut(version, " on ")
	host, rest, _ := strings.Cut(rest, ", compiled by ")
	bits := 0
	if last := rest[strings.LastIndex(rest, " ")+1:]; strings.HasSuffix(last, "-bit") {
		bits, _ = strconv.Atoi(strings.TrimSuffix(last, "-bit"))
	}
	architecture, system, _ := strings.Cut(host, "-")
	if at := strings.Index(system, "linux"); at >= 0 {
		system = system[at:]
	} else {
		system = strings.TrimRight(system[strings.LastIndex(system, "-")+1:], "0123456789.")
	}
	return NewPlatform(architecture, bits, system)
}

func platform(ctx context.Context, c *Conn, f *Facts) error {
	var version string
	if err := c.pgx.QueryRow(ctx, "SELECT version()").Scan(&version); err != nil {
		return err
	}
	f.Platform = ParsePlatform(version)
	return nil
}
