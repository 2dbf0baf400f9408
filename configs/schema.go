package configs

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// Schema is the JSON Schema (2020-12) of a configuration, made from the types.
// It states what a single field must be; rules between fields are Parse's.
func Schema() ([]byte, error) {
	root := objectSchema(reflect.TypeFor[Config]())
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Holdfast configuration"
	out, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the configuration's schema: %w", err)
	}
	return append(out, '\n'), nil
}

func objectSchema(t reflect.Type) map[string]any {
	properties, required := map[string]any{}, []string{}
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		name := tag.Get("yaml")
		if name == "-" {
			continue
		}
		properties[name] = fieldSchema(t.Field(i).Type, tag)
		if tag.Get("required") != "" {
			required = append(required, name)
		}
	}
	s := map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	if len(required) > 0 {
		s["required"] = required
	}
	return s
}

func fieldSchema(t reflect.Type, tag reflect.StructTag) map[string]any {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	s := typeSchema(t)
	s["description"] = tag.Get("doc")
	if text := tag.Get("default"); text != "" {
		s["default"] = jsonValue(t, text)
	}
	item := s
	if t.Kind() == reflect.Slice {
		item = typeSchema(t.Elem())
		s["items"] = item
	}
	if enum := tag.Get("enum"); enum != "" {
		values := []any{}
		for _, word := range strings.Split(enum, "|") {
			values = append(values, jsonValue(t, word))
		}
		item["enum"] = values
	}
	if tag.Get("format") == "name" {
		item["pattern"] = nameRE.String()
	}
	if least := tag.Get("min"); least != "" && t.Kind() == reflect.Int {
		item["minimum"] = jsonValue(t, least)
	}
	return s
}

// typeSchema is what a value of the type looks like in YAML.
func typeSchema(t reflect.Type) map[string]any {
	switch t {
	case reflect.TypeFor[Duration]():
		return map[string]any{"type": "string", "pattern": `^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$`, "minLength": 2}
	case reflect.TypeFor[Size]():
		return map[string]any{"type": []string{"string", "integer"}, "pattern": `^(0|[0-9]+(B|KiB|MiB|GiB|TiB))$`, "maximum": 0, "minimum": 0}
	case reflect.TypeFor[Rate]():
		return map[string]any{"type": []string{"string", "integer"}, "pattern": `^(0|[0-9]+(B|KiB|MiB|GiB|TiB)/s)$`, "maximum": 0, "minimum": 0}
	case reflect.TypeFor[Secret]():
		return oneOfItsFields(t)
	case reflect.TypeFor[Credentials]():
		return map[string]any{"oneOf": []any{map[string]any{"enum": []string{"instance", "web_identity"}}, oneOfItsFields(t)}}
	case reflect.TypeFor[Jobs]():
		return map[string]any{"oneOf": []any{map[string]any{"const": "sqlite"}, oneOfItsFields(t)}}
	}
	switch t.Kind() {
	case reflect.Struct:
		return objectSchema(t)
	case reflect.Slice:
		return map[string]any{"type": "array"}
	case reflect.Int:
		return map[string]any{"type": "integer"}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	}
	return map[string]any{"type": "string"}
}

func oneOfItsFields(t reflect.Type) map[string]any {
	s := objectSchema(t)
	s["minProperties"], s["maxProperties"] = 1, 1
	return s
}

// jsonValue is a tag's text as the field's type has it in a document.
func jsonValue(t reflect.Type, text string) any {
	if n, err := strconv.Atoi(text); err == nil && t.Kind() == reflect.Int {
		return n
	}
	if t.Kind() == reflect.Bool {
		return text == "true"
	}
	return text
}
