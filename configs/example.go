package configs

import _ "embed"

//go:embed holdfast.example.yaml
var example []byte

//go:embed drill.example.yaml
var drillExample []byte

// Example is the commented configuration of a database host: the reference
// manual, with every field, its default and its unit.
func Example() []byte { return append([]byte(nil), example...) }

// DrillExample is the configuration of a drill and restore node.
func DrillExample() []byte { return append([]byte(nil), drillExample...) }
