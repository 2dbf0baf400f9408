package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/server"
)

func (e *env) incidentCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "incident", Short: "What is wrong, or was"}
	var all bool
	list := &cobra.Command{
		Use:   "list",
		Short: "List open incidents, the newest first",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return e.listIncidents(cmd.Context(), all) },
	}
	list.Flags().BoolVar(&all, "all", false, "closed ones as well")
	show := &cobra.Command{
		Use:   "show ID|KEY",
		Short: "Show one incident with its remedy",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return e.showIncident(cmd.Context(), args[0]) },
	}
	cmd.AddCommand(list, show, e.incidentNoteCommand())
	return cmd
}

var opIncidentNote = server.Op[noteIn, incident.Incident]{ID: "incident-note", Method: http.MethodPost, Path: "/v1/incidents/notes", Summary: "Write down what was found, or done, about an incident"}

type noteIn struct {
	Body struct {
		Which string `json:"incident" doc:"Its id or key."`
		By    string `json:"by,omitempty" doc:"A role, never a name."`
		Text  string `json:"text" maxLength:"1000"`
	}
}

// noteIncident keeps a note with the incident, and for good in the ledger.
func (n *node) noteIncident(ctx context.Context, in noteIn) (incident.Incident, error) {
	text := strings.TrimSpace(in.Body.Text)
	if text == "" || len(text) > 1000 {
		return incident.Incident{}, usage("a note is 1 to 1,000 bytes; this one has %d", len(text))
	}
	i, err := n.incidents.Note(in.Body.Which, incident.Note{At: n.now().UTC(), By: in.Body.By, Text: text})
	if errors.Is(err, incident.ErrUnknown) {
		return i, &fault{exit: exitUsage, err: err, remedy: "`holdfast incident list --all` shows those there are"}
	}
	if err != nil {
		return i, err
	}
	_, err = n.append(asHuman(ctx), "incident.note", map[string]string{"incident": i.Key}, i.Notes[len(i.Notes)-1])
	return i, err
}

func (e *env) incidentNoteCommand() *cobra.Command {
	var in noteIn
	cmd := &cobra.Command{
		Use: "note ID|KEY TEXT", Short: "Write down what was found, or done, about an incident", Args: cobra.ExactArgs(2),
		Long: "The note stands with the incident, and for good in the ledger: write roles and case numbers, no names.",
		RunE: func(c *cobra.Command, args []string) error {
			in.Body.Which, in.Body.Text = args[0], args[1]
			i, err := asks(c.Context(), e, opIncidentNote, in, (*node).noteIncident)
			if err != nil {
				return err
			}
			return e.print(i, func(w io.Writer) { printIncident(w, i) })
		},
	}
	cmd.Flags().StringVar(&in.Body.By, "by", "", "the `ROLE` that writes it")
	return cmd
}

func (e *env) incidents(ctx context.Context) ([]incident.Incident, error) {
	doc, err := call(ctx, e, opIncidents, none{}, func(w *world, _ context.Context, _ none) (incidentsDoc, error) {
		dir := w.state("incidents")
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return incidentsDoc{}, nil
		}
		store, err := incident.New(dir)
		if err != nil {
			return incidentsDoc{}, err
		}
		list, err := store.List()
		return incidentsDoc{list}, err
	})
	return doc.Incidents, err
}

func (e *env) listIncidents(ctx context.Context, all bool) error {
	list, err := e.incidents(ctx)
	if err != nil {
		return err
	}
	doc := incidentsDoc{[]incident.Incident{}}
	for _, i := range list {
		if all || i.Open() {
			doc.Incidents = append(doc.Incidents, i)
		}
	}
	return e.print(doc, func(w io.Writer) {
		if len(doc.Incidents) == 0 {
			fmt.Fprintln(w, "no incident is open on this node")
			return
		}
		var rows [][]string
		for _, i := range doc.Incidents {
			state := "open"
			if !i.Open() {
				state = "closed " + clock(i.ClosedAt)
			}
			rows = append(rows, []string{clock(i.OpenedAt), i.Severity, state, i.Key, i.Title})
		}
		table(w, "OPENED\tSEVERITY\tSTATE\tKEY\tWHAT", rows)
	})
}

func (e *env) showIncident(ctx context.Context, which string) error {
	list, err := e.incidents(ctx)
	if err != nil {
		return err
	}
	for _, i := range list { // of several with one key the newest, which comes first
		if i.ID == which || i.Key == which {
			return e.print(i, func(w io.Writer) { printIncident(w, i) })
		}
	}
	return usage("there is no incident %q on this node; `holdfast incident list --all` shows those there are", which)
}

func printIncident(w io.Writer, i incident.Incident) {
	fmt.Fprintf(w, "%s: %s\n", i.Severity, i.Title)
	fmt.Fprintf(w, "  id          %s\n  key         %s\n  cluster     %s\n", i.ID, i.Key, cmp.Or(i.Cluster, "-"))
	fmt.Fprintf(w, "  opened      %s\n  last seen   %s, %d times in all\n", clock(i.OpenedAt), clock(i.LastSeen), i.Times)
	if !i.Open() {
		fmt.Fprintf(w, "  closed      %s: %s\n", clock(i.ClosedAt), i.Closed)
	}
	fmt.Fprintf(w, "  detail      %s\n", strings.ReplaceAll(i.Detail, "\n", "\n              "))
	if i.Remedy != "" {
		fmt.Fprintf(w, "  what to do  %s\n", i.Remedy)
	}
	for _, n := range i.Notes {
		fmt.Fprintf(w, "  note        %s%s: %s\n", clock(n.At), after(" by ", n.By), n.Text)
	}
}
