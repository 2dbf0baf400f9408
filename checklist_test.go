package holdfast

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// lastItem and lastScene are the last of docs/checklist.md's numbers.
const (
	lastItem  = 73
	lastScene = 20
)

var (
	namedTest = regexp.MustCompile("`([a-z0-9/]+)\\.([Tt]est\\w+)`")
	reason    = regexp.MustCompile(`(?i)\b(waits? for:|does not apply\b).{10,}`)
)

func TestTheChecklistIsWholeAndItsTestsExist(t *testing.T) {
	text, err := os.ReadFile("docs/checklist.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := testFunctions(t)
	rows := map[string]bool{}
	for n, line := range strings.Split(string(text), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || !regexp.MustCompile(`^[CT]-\d`).MatchString(strings.TrimSpace(cells[1])) {
			continue
		}
		item, proof := strings.TrimSpace(cells[1]), cells[3]
		if rows[item] {
			t.Errorf("docs/checklist.md:%d: %s is there twice", n+1, item)
		}
		rows[item] = true
		named := namedTest.FindAllStringSubmatch(proof, -1)
		if len(named) == 0 && !reason.MatchString(proof) {
			t.Errorf("docs/checklist.md:%d: %s has neither a test nor a reason: %s", n+1, item, proof)
		}
		for _, m := range named {
			if !tests[m[1]+"."+m[2]] {
				t.Errorf("docs/checklist.md:%d: %s names %s in %s, and there is no such test", n+1, item, m[2], m[1])
			}
		}
	}
	for _, item := range checklistItems() {
		if !rows[item] {
			t.Errorf("docs/checklist.md has no line for %s", item)
		}
		delete(rows, item)
	}
	for item := range rows {
		t.Errorf("docs/checklist.md has a line for %s, which nobody knows", item)
	}
}

func checklistItems() []string {
	items := []string{"C-38b"}
	for n := 1; n <= lastItem; n++ {
		items = append(items, fmt.Sprintf("C-%d", n))
	}
	for n := 1; n <= lastScene; n++ {
		items = append(items, fmt.Sprintf("T-%d", n))
	}
	return items
}

// testFunctions are the functions of the tree's tests whose names begin with
// Test, or with test and a capital: parts of tests that share a cluster. Keys are
// directory, dot, name.
func testFunctions(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && regexp.MustCompile(`^([Tt]est)[A-Z]`).MatchString(f.Name.Name) {
				found[filepath.ToSlash(filepath.Dir(name))+"."+f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 100 {
		t.Fatalf("only %d tests found: looked in the wrong place", len(found))
	}
	return found
}
