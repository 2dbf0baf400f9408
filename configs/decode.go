package configs

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// scalar is a value that is written as one word: Duration, Size, Cron, …. Its
// error is what was meant.
type scalar interface{ parseScalar(text string) error }

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

const nameMeant = "1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit"

// decoder walks the document beside the types. The YAML library's own decoder
// stops at the first fault; this one goes on and remembers where each field
// stands, so that rules between fields can point at them.
type decoder struct {
	file   string
	faults Faults
	places map[string]*token.Position
	found  map[string]string // what stands at a field, for messages
	bad    map[string]bool   // fields with a fault: rules leave them alone
}

func newDecoder(file string) *decoder {
	return &decoder{
		file: file, places: map[string]*token.Position{}, found: map[string]string{}, bad: map[string]bool{},
	}
}

func (d *decoder) err() error {
	if len(d.faults) == 0 {
		return nil
	}
	d.faults.sort()
	return d.faults
}

func (d *decoder) add(f Fault) {
	f.File = d.file
	d.faults = append(d.faults, f)
	d.bad[f.Field] = true
}

// at adds a fault to a field, at its own place or its nearest parent's.
func (d *decoder) at(field, found, meant string) {
	f := Fault{Field: field, Found: found, Meant: meant}
	for p := field; ; p = parent(p) {
		if pos := d.places[p]; pos != nil {
			f.Line, f.Column = pos.Line, pos.Column
			break
		}
		if p == "" {
			break
		}
	}
	d.add(f)
}

// parent of "a.b[2].c" is "a.b[2]", then "a.b", "a", "".
func parent(field string) string {
	return field[:max(0, strings.LastIndexAny(field, ".["))]
}

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}

// given says whether the document has the field at all.
func (d *decoder) given(field string) bool { return d.places[field] != nil }

func (d *decoder) syntax(err error) {
	f := Fault{Found: "no YAML: " + err.Error(), Meant: "a YAML document"}
	var known yaml.Error
	if errors.As(err, &known) {
		f.Found = "no YAML: " + known.GetMessage()
		if t := known.GetToken(); t != nil && t.Position != nil {
			f.Line, f.Column = t.Position.Line, t.Position.Column
		}
	}
	d.add(f)
}

func (d *decoder) document(node ast.Node, into any) {
	d.places[""] = &token.Position{Line: 1, Column: 1}
	d.value(node, reflect.ValueOf(into).Elem(), "", "")
}

// value decodes node into v; tag is the struct tag of the field.
func (d *decoder) value(node ast.Node, v reflect.Value, tag reflect.StructTag, field string) {
	d.places[field] = place(node)
	d.found[field] = describe(node)
	if _, isText := scalarText(node); isText && placesSecret(v.Type()) {
		d.found[field] = "a value (not shown: it may be the secret itself)"
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch node.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.at(field, d.found[field], "the value itself: anchors, aliases and tags are not used here")
		return
	}
	text, isScalar := scalarText(node)
	target, takesScalar := v.Addr().Interface().(scalar)
	switch {
	case takesScalar && isScalar:
		if err := target.parseScalar(text); err != nil {
			d.at(field, d.found[field], err.Error())
			return
		}
		d.bounds(v, tag, field)
	case v.Kind() == reflect.Struct:
		d.mapping(node, v, field, takesScalar)
	case v.Kind() == reflect.Slice:
		d.sequence(node, v, tag, field)
	default:
		d.plain(node, text, isScalar, v, tag, field)
	}
}

func (d *decoder) sequence(node ast.Node, v reflect.Value, tag reflect.StructTag, field string) {
	list, ok := node.(*ast.SequenceNode)
	if !ok {
		d.at(field, d.found[field], "a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(list.Values), len(list.Values)))
	for i, item := range list.Values {
		d.value(item, v.Index(i), tag, fmt.Sprintf("%s[%d]", field, i))
	}
}

// mapping decodes a mapping into a struct: its fields, then what was left out.
func (d *decoder) mapping(node ast.Node, v reflect.Value, field string, orScalar bool) {
	m, ok := node.(ast.MapNode)
	if !ok {
		meant := "a mapping of " + strings.Join(fieldNames(v.Type()), ", ")
		if orScalar {
			meant = v.Addr().Interface().(scalar).parseScalar("?").Error()
		}
		d.at(field, d.found[field], meant)
		d.defaults(v, field, nil)
		return
	}
	seen := map[string]int{}
	for it := m.MapRange(); it.Next(); {
		d.entry(it.Key(), it.Value(), v, field, seen)
	}
	d.defaults(v, field, seen)
}

func (d *decoder) entry(key ast.MapKeyNode, value ast.Node, v reflect.Value, field string, seen map[string]int) {
	name, pos := key.GetToken().Value, key.GetToken().Position
	child := join(field, name)
	if first := seen[name]; first > 0 {
		d.add(Fault{Line: pos.Line, Column: pos.Column, Field: child, Found: "a second time", Meant: fmt.Sprintf("it once: it stands in line %d already", first)})
		return
	}
	f, ok := fieldByName(v, name)
	if !ok {
		d.unknown(name, pos, field, v.Type())
		return
	}
	seen[name] = pos.Line
	d.value(value, f.value, f.tag, child)
}

func (d *decoder) unknown(name string, pos *token.Position, field string, t reflect.Type) {
	names := fieldNames(t)
	meant := "one of " + strings.Join(names, ", ")
	if guess := nearest(name, names); guess != "" {
		meant = fmt.Sprintf("%s (did you mean %q?)", meant, guess)
	}
	child := join(field, strings.Map(printable, name))
	d.add(Fault{Line: pos.Line, Column: pos.Column, Field: child, Found: "an unknown field", Meant: meant})
}

// defaults gives fields that were left out their default, and reports those
// that must be given.
func (d *decoder) defaults(v reflect.Value, field string, seen map[string]int) {
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		name := tag.Get("yaml")
		if name == "-" || seen[name] > 0 {
			continue
		}
		child, f := join(field, name), v.Field(i)
		if tag.Get("required") != "" && !d.bad[field] {
			d.at(child, "nothing", "it given: "+lowerFirst(tag.Get("doc")))
		}
		if text := tag.Get("default"); text != "" {
			setText(f, text)
		}
		if f.Kind() == reflect.Struct && tag.Get("required") == "" {
			d.defaults(f, child, nil)
		}
	}
}

// setText sets a default; the tags are ours, so a fault in one is a panic that
// the tests meet.
func setText(v reflect.Value, text string) {
	if target, ok := v.Addr().Interface().(scalar); ok {
		if err := target.parseScalar(text); err != nil {
			panic(fmt.Sprintf("default %q of %v: want %v", text, v.Type(), err))
		}
		return
	}
	if meant := setPlain(v, text); meant != "" {
		panic(fmt.Sprintf("default %q of %v: want %s", text, v.Type(), meant))
	}
}

// plain decodes strings, numbers and booleans.
func (d *decoder) plain(node ast.Node, text string, isScalar bool, v reflect.Value, tag reflect.StructTag, field string) {
	_, isString := node.(*ast.StringNode)
	_, isBlock := node.(*ast.LiteralNode)
	meant := kindMeant(v.Kind())
	switch {
	case !isScalar:
	case v.Kind() == reflect.String && !isString && !isBlock:
		meant += ": put it in quotes"
	case v.Kind() != reflect.String && (isString || isBlock):
	default:
		if meant = setPlain(v, text); meant == "" {
			d.bounds(v, tag, field)
			return
		}
	}
	d.at(field, d.found[field], meant)
}

func setPlain(v reflect.Value, text string) (meant string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Int:
		n, err := strconv.ParseInt(text, 10, 32)
		// YAML reads a leading zero as octal, people do not.
		if err != nil || strconv.FormatInt(n, 10) != text {
			return kindMeant(v.Kind())
		}
		v.SetInt(n)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return kindMeant(v.Kind())
		}
		v.SetBool(text == "true")
	}
	return ""
}

func kindMeant(k reflect.Kind) string {
	switch k {
	case reflect.Int:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	}
	return "a string"
}

// bounds applies the tags enum, format and min to a value just set.
func (d *decoder) bounds(v reflect.Value, tag reflect.StructTag, field string) {
	found := d.found[field]
	if enum := tag.Get("enum"); enum != "" {
		words := strings.Split(enum, "|")
		if text := fmt.Sprint(v.Interface()); !slices.Contains(words, text) {
			meant := strings.Join(words, " or ")
			if guess := nearest(text, words); guess != "" && len(words) > 2 {
				meant = fmt.Sprintf("%s (did you mean %q?)", strings.Join(words, ", "), guess)
			}
			d.at(field, found, meant)
		}
	}
	if tag.Get("format") == "name" && !nameRE.MatchString(v.String()) {
		d.at(field, found, nameMeant)
	}
	if v.Kind() == reflect.String && tag.Get("required") != "" && v.String() == "" && !d.bad[field] {
		d.at(field, found, "it given: "+lowerFirst(tag.Get("doc")))
	}
	if least := tag.Get("min"); least != "" {
		bound := reflect.New(v.Type()).Elem()
		setText(bound, least)
		if v.Int() < bound.Int() {
			d.at(field, found, "at least "+least)
		}
	}
}
