// Package configs is Holdfast's configuration: its types, the strict reader of
// its YAML, the rules that no single field can state, and its JSON Schema.
//
// It never reads a secret while parsing, never guesses at a field it does not
// know, and never changes what was written: a document is taken whole or
// refused. It fails with [Faults], all of them at once, each with the place,
// what was found there and what was meant.
//
// The types' tags are the one table from which defaults, checks and the schema
// are made:
//
//	yaml:"name"      the field's name
//	doc:"…"          one sentence, the schema's description
//	default:"…"      the value that stands when the field is left out
//	enum:"a|b"       the only values
//	min:"1"          the least number
//	format:"name"    "name": a name that may be a path element of the repository
//	required:"yes"   must be given wherever its mapping is
//
// The file holdfast.example.yaml beside this one is the reference manual.
package configs
