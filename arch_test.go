package holdfast

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/holdfast-dr/holdfast/"

// layers is the import table: a package may import packages of lower rows only,
// and of its own row only where allowed says so. A package not in the table
// fails the test: put it where it belongs, and say why in docs/decisions.
//
// Do not change this to make a build pass.
var layers = [][]string{
	{"internal/durable", "internal/postgres/lsn", "internal/thin", "configs", "docs"},
	{"internal/zone", "internal/seal"},
	{"internal/vault"},
	{"internal/catalog", "internal/ledger", "internal/approval", "internal/incident", "internal/postgres", "internal/notify"},
	{"internal/tenancy"},
	{"restore", "snapshot", "retention"},
	{"drills"},
	{"scheduler", "internal/server"},
	{"cmd"},
}

// within lists, for a package, what it may import although the rows alone would
// forbid it.
var within = map[string][]string{
	"internal/thin":     {"internal/thin"},
	"internal/zone":     {"internal/zone"},
	"internal/postgres": {"internal/postgres"},
	"internal/ledger":   {"internal/ledger"},
	"internal/server":   {"internal/server"},
	"drills":            {"drills"}, // drills/evidence reads what drills wrote
	"cmd":               {"cmd"},
}

// forbidden imports that the rows would allow, each with its reason.
var forbidden = map[string]map[string]string{
	"scheduler": {
		"drills": "scheduler knows when, never what: cmd registers the handlers", "restore": "as drills", "snapshot": "as drills",
		"retention": "as drills", "internal/vault": "as drills", "internal/catalog": "as drills", "configs": "cmd converts",
	},
	"internal/postgres": {"internal/vault": "PostgreSQL knows nothing of storage", "internal/zone": "as vault"},
	"internal/catalog":  {"internal/postgres": "records hold LSNs, nothing more of PostgreSQL"},
}

// testSupport may be imported by any test, and by no product code.
var testSupport = []string{"internal/zone/zonetest", "internal/postgres/pgtest", "internal/durable/durabletest", "scheduler/schedulertest"}

func TestImportsGoOneWay(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") || path.Dir(filepath.ToSlash(name)) == "." {
			return nil
		}
		files++
		checkFile(t, filepath.ToSlash(name))
		return nil
	})
	if err != nil || files == 0 {
		t.Fatalf("read %d files: %v", files, err)
	}
}

func checkFile(t *testing.T, name string) {
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
	if err != nil {
		t.Error(err)
		return
	}
	from, isTest := path.Dir(name), strings.HasSuffix(name, "_test.go")
	for _, spec := range f.Imports {
		to, ours := strings.CutPrefix(unquote(spec.Path.Value), module)
		if !ours {
			continue
		}
		if reason := refuse(from, to, isTest); reason != "" {
			t.Errorf("%s imports %s: %s", name, to, reason)
		}
	}
}

func refuse(from, to string, isTest bool) string {
	if slices.Contains(testSupport, to) {
		if isTest || slices.Contains(testSupport, from) {
			return ""
		}
		return "test support has no place in the product"
	}
	if isTest || slices.Contains(testSupport, from) || strings.HasPrefix(from, "bench") {
		return "" // a test may build its world from anything
	}
	a, b := house(from), house(to)
	if row(from) < 0 || row(to) < 0 {
		return "not in the import table of arch_test.go"
	}
	if reason := forbidden[a][b]; reason != "" {
		return reason
	}
	if row(to) < row(from) || from == to || slices.Contains(within[a], b) {
		return ""
	}
	return "imports must go down the table in arch_test.go"
}

// house is the row's name that a package stands under.
func house(pkg string) string {
	for p := pkg; p != "."; p = path.Dir(p) {
		for _, r := range layers {
			if slices.Contains(r, p) {
				return p
			}
		}
	}
	return ""
}

func row(pkg string) int {
	h := house(pkg)
	return slices.IndexFunc(layers, func(r []string) bool { return slices.Contains(r, h) })
}

func unquote(s string) string {
	u, err := strconv.Unquote(s)
	if err != nil {
		return s
	}
	return u
}

// Each package says what it is for.
func TestEveryPackageHasAComment(t *testing.T) {
	said := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.Dir(name)
		said[dir] = said[dir] || len(f.Doc.Text()) > 60
		return nil
	})
	if err != nil || len(said) == 0 {
		t.Fatalf("found %d packages: %v", len(said), err)
	}
	for dir, ok := range said {
		if !ok {
			t.Errorf("package %s has no package comment that says what it is for, what it never does and how it fails", dir)
		}
	}
}
