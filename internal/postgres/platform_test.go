package postgres_test

import (
	"runtime"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func TestAPlatformIsReadFromWhatServersSay(t *testing.T) { // C-69
	for version, want := range map[string]postgres.Platform{
		"PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc (Debian 12.2.0-14+deb12u1) 12.2.0, 64-bit": {"x86_64", 64, "little", "linux-gnu"},
		"PostgreSQL 17.2 on aarch64-unknown-linux-musl, compiled by gcc (Alpine 14.2.0) 14.2.0, 64-bit":                               {"aarch64", 64, "little", "linux-musl"},
		"PostgreSQL 16.4 (Homebrew) on arm64-apple-darwin23.6.0, compiled by Apple clang version 15.0.0, 64-bit":                      {"aarch64", 64, "little", "darwin"},
		"PostgreSQL 14.1 on i686-pc-linux-gnu, compiled by gcc 9.3.0, 32-bit":                                                         {"x86", 32, "little", "linux-gnu"},
		"PostgreSQL 17.0 on x86_64-windows, compiled by msvc-19.41.34120, 64-bit":                                                     {"x86_64", 64, "little", "windows"},
		"PostgreSQL 15.3 on s390x-ibm-linux-gnu, compiled by gcc 12, 64-bit":                                                          {"s390x", 64, "big", "linux-gnu"},
		"EnterpriseDB Postgres": {},
	} {
		if got := postgres.ParsePlatform(version); got != want {
			t.Errorf("%s: %+v, want %+v", version, got, want)
		}
	}
	c := pgtest.Start(t)
	f, err := postgres.GetFacts(t.Context(), connect(t, c))
	if here := postgres.NewPlatform(runtime.GOARCH, 64, "linux-gnu"); err != nil || f.Platform != here {
		t.Errorf("%+v, want %+v (%v)", f.Platform, here, err)
	}
}
