package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

type versionDocument struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Format   int    `json:"repository_format"`
	Encoder  string `json:"encoder"` // what compresses: any build reads what any other wrote
}

func (e *env) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, and the repository format that it reads and writes",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			doc := versionDocument{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Format: zone.Format, Encoder: seal.Encoder}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						doc.Commit = s.Value
					}
				}
			}
			return e.print(doc, func(w io.Writer) {
				fmt.Fprintf(w, "holdfast %s (%s, %s, %s, repository format %d)\n", doc.Version, doc.Go, doc.Platform, doc.Encoder, doc.Format)
			})
		},
	}
}
