package configs

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden messages")

func TestExamplesParse(t *testing.T) {
	for name, text := range map[string][]byte{"holdfast": Example(), "drill": DrillExample()} {
		if _, err := Parse(text, name+".example.yaml"); err != nil {
			t.Errorf("%v", err)
		}
	}
}

// fieldsOf lists all fields of a type: "clusters.retention.window".
func fieldsOf(t reflect.Type, prefix string, add func(field string, tag reflect.StructTag)) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if name := f.Tag.Get("yaml"); name != "-" {
			add(join(prefix, name), f.Tag)
			fieldsOf(f.Type, join(prefix, name), add)
		}
	}
}

var indexRE = regexp.MustCompile(`\[\d+\]`)

func TestExampleShowsEveryField(t *testing.T) {
	d := decodeDocument(Example(), "", &Config{})
	given := map[string]bool{}
	for place := range d.places {
		given[indexRE.ReplaceAllString(place, "")] = true
	}
	fieldsOf(reflect.TypeFor[Config](), "", func(field string, tag reflect.StructTag) {
		if tag.Get("doc") == "" {
			t.Errorf("%s has no description", field)
		}
		_, name, _ := strings.Cut(field, ".")
		for _, place := range []string{"file", "env", "credential", "url", "identity", "postgres"} {
			if name == place || strings.HasSuffix(field, "."+place) || strings.Contains(field, ".identity.") {
				return // the places of a secret, explained once, and fields shown in comments
			}
		}
		if !given[field] {
			t.Errorf("holdfast.example.yaml does not show %s", field)
		}
	})
	for _, shown := range []string{"{env: NAME}", "# identity: {", "#   postgres: {", "{credential: name}", "{file: /absolute/path}"} {
		if !strings.Contains(string(Example()), shown) {
			t.Errorf("holdfast.example.yaml does not show %q", shown)
		}
	}
}

func TestExampleStatesTheDefaults(t *testing.T) {
	lines := map[string]string{}
	d := decodeDocument(Example(), "", &Config{})
	text := strings.Split(string(Example()), "\n")
	for place, pos := range d.places {
		field := indexRE.ReplaceAllString(place, "")
		if lines[field] == "" && pos.Line > 0 {
			lines[field] = text[pos.Line-1]
		}
	}
	fieldsOf(reflect.TypeFor[Config](), "", func(field string, tag reflect.StructTag) {
		line, def := lines[field], tag.Get("default")
		_, comment, commented := strings.Cut(line, " #")
		// Of a field shown several times, a later one may explain it.
		if def == "" || !commented || strings.HasPrefix(field, "repository.object_lock") || strings.HasSuffix(field, "path_style") || def == "0" {
			return
		}
		stands := strings.Contains(comment, "default "+def) || strings.Contains(comment, "default: "+def) ||
			(strings.Contains(comment, "default") && strings.Contains(strings.SplitN(line, " #", 2)[0], def))
		if !stands && strings.Contains(comment, "default") {
			t.Errorf("holdfast.example.yaml: %s: the default is %q, the line says %q", field, def, line)
		}
	})
}

// Every document in testdata is named after what is wrong with it; its golden
// file holds all the messages.
func TestFaultsAreAllReportedWithTheirPlaces(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 20 {
		t.Fatalf("testdata: %d documents, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(data, name+".yaml")
			var faults Faults
			if !errors.As(err, &faults) {
				t.Fatalf("parsed, or failed without faults: %v", err)
			}
			got, golden := err.Error()+"\n", strings.TrimSuffix(file, ".yaml")+".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if strings.Contains(got, "hunter2") {
				t.Error("a password is printed")
			}
		})
	}
}

const minimal = `format: 1
node: {name: db1}
repository:
  zones: [{name: a, directory: /a}, {name: b, directory: /b}, {name: c, directory: /c}]
  recipients: [age1aa]
  index_identity: {credential: index}
  signing_key: {credential: signing}
clusters:
  - {name: my-cms, connection: "host=db1", projects: {layout: rows, registry: q, rows: {database: d, root: r, key: k}}}
`

func TestDefaultsFollowTheManual(t *testing.T) {
	c, err := Parse([]byte(minimal), "")
	if err != nil {
		t.Fatal(err)
	}
	const day = 24 * time.Hour
	cl := c.Clusters[0]
	for name, pair := range map[string][2]any{
		"state":         {c.Node.State, "/var/lib/holdfast"},
		"memory":        {c.Node.Limits.Memory, Size(512 << 20)},
		"metrics":       {c.Node.Metrics, true},
		"jobs":          {c.Node.Jobs.Postgres == nil, true},
		"quorum":        {c.Repository.WriteQuorum, 2},
		"lock":          {c.Repository.Zones[0].ObjectLock, "none"},
		"schedule":      {cl.Snapshots.Schedule, Cron("15 */6 * * *")},
		"source":        {cl.Snapshots.Source, "stream"},
		"slot":          {cl.WAL.Slot, "holdfast_my_cms"},
		"keep_at_least": {cl.Retention.KeepAtLeast.Std(), 7 * day},
		"keep_at_most":  {cl.Retention.KeepAtMost.Std(), 400 * day},
		"removal_grace": {cl.Retention.RemovalGrace.Std(), day},
		"renew_after":   {cl.Retention.RenewAfter.Std(), 30 * day},
		"within":        {cl.Projects.Purge.Within.Std(), 408 * day},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %v, want %v", name, pair[0], pair[1])
		}
	}
}

func TestAcceptedWhatWasSaidToBeAccepted(t *testing.T) {
	for name, change := range map[string][2]string{
		"one zone":             {"zones: [{name: a, directory: /a}, {name: b, directory: /b}, {name: c, directory: /c}]", "zones: [{name: a, directory: /a}]\n  accept_stop_on_zone_loss: true"},
		"quorum of all":        {"  recipients", "  write_quorum: 3\n  accept_stop_on_zone_loss: true\n  recipients"},
		"identity beside live": {"node: {name: db1}", "node: {name: db1, allow_identity: true}\nenvironments: [{name: e, directory: /e, identity: {file: /k}}]"},
		"early purge":          {"key: k}}", "key: k}, purge: {within: 30d, early: true}}"},
		"jobs in postgres":     {"node: {name: db1}", "node: {name: db1, jobs: {postgres: {env: JOBS}}}"},
		"listen with TLS":      {"node: {name: db1}", "node: {name: db1, listen: \"[::]:443\", tls: {certificate: {file: /c}, key: {file: /k}}, tokens: {file: /t}}"},
		"block SQL":            {"registry: q", "registry: \"SELECT\\n1\""},
	} {
		text := strings.Replace(minimal, change[0], change[1], 1)
		if text == minimal {
			t.Fatalf("%s: nothing changed", name)
		}
		if _, err := Parse([]byte(text), name); err != nil {
			t.Error(err)
		}
	}
}

func TestLoadSaysWhichFileCannotBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(path); err != nil || c.Path != path {
		t.Errorf("%v", err)
	}
}

func TestRepositoryFileHoldsZonesAndSignersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "repository.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("format: 1\nzones: [{name: a, directory: /a}]\ntrusted_signers: [{key: n+1234abcd+AAAA, clusters: [cms], may: [snapshot]}]\n")
	r, err := LoadRepository(path)
	if err != nil || len(r.Zones) != 1 || r.WriteQuorum != 1 || len(r.TrustedSigners) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	write("format: 1\nzones: [{name: a}]\nsigning_key: {file: /k}\n")
	_, err = LoadRepository(path)
	if err == nil || !strings.Contains(err.Error(), "zones[0]: found neither") || !strings.Contains(err.Error(), "signing_key: found an unknown field") {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Example())
	f.Add(DrillExample())
	f.Add([]byte(minimal))
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, "fuzz")
		var faults Faults
		if err == nil && (c == nil || len(c.Repository.Zones) == 0) {
			t.Error("accepted without zones")
		}
		if err != nil && !errors.As(err, &faults) {
			t.Errorf("an error that is no Faults: %v", err)
		}
	})
}
