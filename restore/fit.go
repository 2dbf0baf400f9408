package restore

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// ErrUnfit means that no server here can start from the snapshot's files.
var ErrUnfit = errors.New("the snapshot cannot be started here")

var machines = map[elf.Machine]string{
	elf.EM_X86_64: "x86_64", elf.EM_386: "x86", elf.EM_AARCH64: "aarch64", elf.EM_ARM: "arm", elf.EM_S390: "s390x",
	elf.EM_RISCV: "riscv64", elf.EM_LOONGARCH: "loongarch64", elf.EM_PPC64: "ppc64",
}

// builtFor is the platform of a server's program; empty where that has no ELF header,
// as a script that stands for it.
func builtFor(bin string) postgres.Platform {
	f, err := elf.Open(filepath.Join(bin, "postgres"))
	if err != nil {
		return postgres.Platform{}
	}
	defer func() { _ = f.Close() }()
	name, bits := machines[f.Machine], 32
	if f.Class == elf.ELFCLASS64 {
		bits = 64
	}
	if f.Machine == elf.EM_PPC64 && f.Data == elf.ELFDATA2LSB {
		name = "ppc64le"
	}
	p := postgres.NewPlatform(name, bits, "")
	if p.ByteOrder = "little"; f.Data == elf.ELFDATA2MSB {
		p.ByteOrder = "big"
	}
	return p
}

// fit refuses files that the server in bin would not start from (C-69). What a
// manifest does not tell, as older ones do not, is left to the server.
func fit(f catalog.ServerFacts, bin string) error {
	here := builtFor(bin)
	differ := func(a, b string) bool { return a != "" && b != "" && a != b }
	const remedy = "PostgreSQL's files serve the architecture that wrote them alone: restore on a machine of that, or move the data from there with pg_dump"
	switch {
	case f.BlockSize != 0 && f.BlockSize != page.Size:
		return fmt.Errorf("%w: its pages have %d bytes, and this program and the servers that it starts have pages of %d: restore it where PostgreSQL is built as on its host", ErrUnfit, f.BlockSize, page.Size)
	case differ(f.Architecture, here.Architecture):
		return fmt.Errorf("%w: it was taken from a server for %s, and the one in %s is for %s; %s", ErrUnfit, f.Architecture, bin, here.Architecture, remedy)
	case f.WordBits != 0 && here.WordBits != 0 && f.WordBits != here.WordBits:
		return fmt.Errorf("%w: it was taken from a server of %d bits, and the one in %s has %d; %s", ErrUnfit, f.WordBits, bin, here.WordBits, remedy)
	case differ(f.ByteOrder, here.ByteOrder):
		return fmt.Errorf("%w: it was taken from a server whose byte order is %s-endian, and the one in %s is %s-endian; %s", ErrUnfit, f.ByteOrder, bin, here.ByteOrder, remedy)
	}
	return nil
}

// compareHosts warns of what may sort otherwise here than where the snapshot was taken:
// an index over text that was built there may then miss rows. It fails no restore.
func (room *Room) compareHosts(ctx context.Context) {
	warn := func(format string, args ...any) {
		room.Result.Warnings = append(room.Result.Warnings, fmt.Sprintf(format, args...))
	}
	conn, err := room.Server.Conn(ctx, "postgres")
	if err != nil {
		warn("collations were not compared with those of the snapshot's host: %v", err)
		return
	}
	defer conn.Close(ctx)
	var version string
	if err := conn.QueryRow(ctx, "SELECT version()").Scan(&version); err != nil {
		warn("the operating system was not compared with that of the snapshot's host: %v", err)
	}
	was := room.Header.Facts.OS
	if here := postgres.ParsePlatform(version).OS; was != "" && here != "" && was != here {
		warn("the snapshot was taken on %s and this is %s: text may sort otherwise here; check indexes with pg_amcheck --heapallindexed, and REINDEX those over text", was, here)
	}
	if room.Header.Facts.Major < 15 {
		return // servers do not tell the versions of databases' collations
	}
	here, err := collations(ctx, conn)
	if err != nil {
		warn("collations were not compared with those of the snapshot's host: %v", err)
	}
	for _, d := range room.Header.Inventory.Databases {
		if now := here[d.OID]; d.CollationVersion != "" && now != "" && now != d.CollationVersion {
			// By its OID: a database may be a project, whose name no record may keep.
			warn("the database with OID %d: its collation is of version %s here and was of %s: REINDEX its indexes over text, then ALTER DATABASE … REFRESH COLLATION VERSION", d.OID, now, d.CollationVersion)
		}
	}
}

// collations are the versions that this host has of the databases' collations.
func collations(ctx context.Context, conn *pgx.Conn) (map[uint32]string, error) {
	rows, err := conn.Query(ctx, "SELECT oid, coalesce(pg_database_collation_actual_version(oid), '') FROM pg_database")
	if err != nil {
		return nil, err
	}
	here := map[uint32]string{}
	var oid uint32
	var version string
	_, err = pgx.ForEachRow(rows, []any{&oid, &version}, func() error {
		here[oid] = version
		return nil
	})
	return here, err
}
