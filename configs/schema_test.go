package configs

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// descend follows a field through the schema; oneOf's object stands for it.
func descend(schema map[string]any, field string) map[string]any {
	for _, name := range strings.Split(field, ".") {
		if items, ok := schema["items"].(map[string]any); ok {
			schema = items
		}
		for _, one := range asList(schema["oneOf"]) {
			if m := one.(map[string]any); m["properties"] != nil {
				schema = m
			}
		}
		properties, _ := schema["properties"].(map[string]any)
		next, ok := properties[name].(map[string]any)
		if !ok {
			return nil
		}
		schema = next
	}
	return schema
}

func asList(v any) []any { list, _ := v.([]any); return list }

func TestSchemaHasEveryFieldOfTheTypesAndTheExamples(t *testing.T) {
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	if schema["$schema"] != "https://json-schema.org/draft/2020-12/schema" || schema["additionalProperties"] != false {
		t.Errorf("head: %v %v", schema["$schema"], schema["additionalProperties"])
	}
	fieldsOf(reflect.TypeFor[Config](), "", func(field string, tag reflect.StructTag) {
		s := descend(schema, field)
		if s == nil || s["description"] != tag.Get("doc") {
			t.Errorf("the schema of %s is %v", field, s)
		}
	})
	for _, doc := range [][]byte{Example(), DrillExample()} {
		for place := range decodeDocument(doc, "", &Config{}).places {
			if place != "" && descend(schema, indexRE.ReplaceAllString(place, "")) == nil {
				t.Errorf("the schema has no %s", place)
			}
		}
	}
	mode := descend(schema, "clusters.wal.mode")
	if mode["default"] != "stream" || len(asList(mode["enum"])) != 2 {
		t.Errorf("wal.mode: %v", mode)
	}
	if workers := descend(schema, "node.limits.workers"); workers["default"] != 2.0 || workers["minimum"] != 1.0 {
		t.Errorf("workers: %v", workers)
	}
}

// The units are read by systemd itself where it is; these lines are what the
// documentation promises of them.
var watchdog = map[string]string{"holdfast.service": "WatchdogSec=60s", "holdfast-drill.service": "WatchdogSec=60s", "holdfast-watch.service": "WatchdogSec=10min"}

func TestUnitsAreHardenedAndHoldTheRightCredentials(t *testing.T) {
	for _, name := range []string{"holdfast.service", "holdfast-drill.service", "holdfast-watch.service"} {
		text, err := os.ReadFile(filepath.Join("systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		section, seen := "", map[string]bool{}
		for i, line := range strings.Split(string(text), "\n") {
			if line == "" || line[0] == '#' {
				continue
			}
			if line[0] == '[' {
				section = line
				continue
			}
			if key, value, ok := strings.Cut(line, "="); !ok || key == "" || strings.TrimSpace(key) != key || value != strings.TrimSpace(value) || section == "" {
				t.Errorf("%s:%d: %q", name, i+1, line)
			}
			seen[section+line] = true
		}
		for _, line := range []string{"Type=notify", watchdog[name], "ProtectSystem=strict", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "PrivateTmp=yes", "UMask=0077", "Restart=always", "LimitCORE=0"} {
			if !seen["[Service]"+line] {
				t.Errorf("%s lacks %s", name, line)
			}
		}
		holdsData := strings.Contains(string(text), "LoadCredential=drill:")
		if holdsData != (name == "holdfast-drill.service") {
			t.Errorf("%s: a data identity: %v", name, holdsData)
		}
	}
}

func TestUnitsAreReadBySystemd(t *testing.T) {
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("no systemd-analyze here: the parse above is all that was checked")
		return
	}
	dir := t.TempDir()
	for _, name := range []string{"holdfast.service", "holdfast-drill.service", "holdfast-watch.service"} {
		text, err := os.ReadFile(filepath.Join("systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		// The one thing it could not find here is the installed program.
		text = []byte(strings.Replace(string(text), "ExecStart=/usr/bin/holdfast", "ExecStart=/bin/true", 1))
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), program, "verify", "--man=no", path).CombinedOutput()
		if err != nil || strings.Contains(string(out), name) {
			t.Errorf("systemd-analyze verify %s: %v\n%s", name, err, out)
		}
	}
}
