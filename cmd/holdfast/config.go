package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
)

func (e *env) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Validate a configuration; print an example or the schema"}
	var drill bool
	example := &cobra.Command{
		Use:   "example",
		Short: "Print a commented configuration with every field, its default and its unit",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text := configs.Example()
			if drill {
				text = configs.DrillExample()
			}
			_, err := e.out.Write(text)
			return err
		},
	}
	example.Flags().BoolVar(&drill, "drill", false, "that of a drill and restore node")
	schema := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of a configuration, for editors",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text, err := configs.Schema()
			if err != nil {
				return fmt.Errorf("making the schema: %w", err)
			}
			_, err = fmt.Fprintf(e.out, "%s\n", text)
			return err
		},
	}
	validate := &cobra.Command{
		Use:   "validate",
		Short: "Read the configuration and tell everything that is wrong with it, with lines",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return e.validateConfig() },
	}
	cmd.AddCommand(validate, example, schema)
	return cmd
}

type validateDocument struct {
	OK      bool            `json:"ok"`
	File    string          `json:"file"`
	Summary string          `json:"summary,omitempty"`
	Faults  []validateFault `json:"faults"`
}

type validateFault struct {
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Field  string `json:"field,omitempty"`
	Found  string `json:"found"`
	Meant  string `json:"meant"`
}

func (e *env) validateConfig() error {
	cfg, err := configs.Load(e.config)
	doc := validateDocument{OK: err == nil, File: e.config, Faults: []validateFault{}}
	var faults configs.Faults
	if errors.As(err, &faults) {
		for _, f := range faults {
			doc.Faults = append(doc.Faults, validateFault{f.Line, f.Column, f.Field, f.Found, f.Meant})
		}
	} else if err != nil {
		return err
	}
	if doc.OK {
		doc.Summary = summarise(cfg)
		return e.print(doc, func(w io.Writer) { fmt.Fprintf(w, "ok: %s: %s\n", e.config, doc.Summary) })
	}
	if e.output == "json" {
		enc := json.NewEncoder(e.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(doc); err != nil {
			return err
		}
		return quietly(exitUsage)
	}
	for _, f := range faults {
		fmt.Fprintln(e.err, f.Error())
	}
	plural := "s"
	if len(faults) == 1 {
		plural = ""
	}
	return &fault{
		exit: exitUsage, err: fmt.Errorf("%s has %d fault%s, each told above", e.config, len(faults), plural),
		remedy: "correct the lines; `holdfast config example` shows every field with its unit",
	}
}

// summarise is a configuration in one line.
func summarise(c *configs.Config) string {
	live := 0
	for _, cl := range c.Clusters {
		if cl.Connection != "" {
			live++
		}
	}
	s := fmt.Sprintf("node %s, %s (a write needs %d), %s", c.Node.Name, count(len(c.Repository.Zones), "zone"), c.Repository.WriteQuorum, count(len(c.Clusters), "cluster"))
	if live != len(c.Clusters) {
		s += fmt.Sprintf(" (%d reached from here)", live)
	}
	return s + ", " + count(len(c.Environments), "environment") + ", " + count(len(c.Drills), "drill")
}

// count is a number of things in words.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
