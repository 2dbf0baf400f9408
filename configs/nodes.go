package configs

import (
	"reflect"
	"strconv"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// structField is a field of one of our types, found by its name in YAML.
type structField struct {
	value reflect.Value
	tag   reflect.StructTag
}

func fieldByName(v reflect.Value, name string) (structField, bool) {
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		if own := tag.Get("yaml"); own == name && own != "-" {
			return structField{v.Field(i), tag}, true
		}
	}
	return structField{}, false
}

func fieldNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("yaml"); name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// place is where a node begins. A mapping's own token is its first colon or
// brace, so its first key is taken instead.
func place(node ast.Node) *token.Position {
	if m, ok := node.(ast.MapNode); ok {
		if it := m.MapRange(); it.Next() {
			return it.Key().GetToken().Position
		}
	}
	if t := node.GetToken(); t != nil && t.Position != nil {
		return t.Position
	}
	return &token.Position{Line: 1, Column: 1}
}

// scalarText is a scalar as it was written, without its quotes.
func scalarText(node ast.Node) (string, bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return node.GetToken().Value, true
	}
	return "", false
}

// describe says what stands in the document, in few words and on one line.
func describe(node ast.Node) string {
	text, _ := scalarText(node)
	switch node.(type) {
	case *ast.StringNode, *ast.LiteralNode:
		return quote(text)
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "the number " + text
	case *ast.BoolNode:
		return text
	case *ast.NullNode:
		return "nothing (null)"
	case *ast.SequenceNode:
		return "a list"
	case ast.MapNode:
		return "a mapping"
	}
	return "the YAML " + strings.ToLower(node.Type().String())
}

// placesSecret says whether a field says where a secret is: what was written
// there in its stead may be the secret.
func placesSecret(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t == reflect.TypeFor[Secret]() || t == reflect.TypeFor[Credentials]() || t == reflect.TypeFor[Jobs]()
}

func quote(text string) string {
	if runes := []rune(text); len(runes) > 60 {
		text = string(runes[:57]) + "…"
	}
	return strconv.Quote(text)
}

func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return '?'
}

func lowerFirst(s string) string {
	if len(s) > 1 && s[1] >= 'a' && s[1] <= 'z' {
		s = strings.ToLower(s[:1]) + s[1:]
	}
	return strings.TrimSuffix(s, ".")
}
