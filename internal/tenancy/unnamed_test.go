package tenancy

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestErrorsForRecordsNameNoProject(t *testing.T) {
	refused := &pgconn.PgError{Severity: "ERROR", Code: "42501", Message: `permission denied for schema acme`}
	for name, err := range map[string]error{
		"the server's words":  refused,
		"a quoted table":      fmt.Errorf("copying the rows of %s: %w", `"acme".page`, refused),
		"a table":             fmt.Errorf("copying the rows of acme.page: %w", refused),
		"arguments of a dump": errors.New("pg_dump --schema=acme: exit status 1"),
		"a connection":        fmt.Errorf("connecting to database acme of cms: %w", refused),
	} {
		for _, l := range []Layout{{Kind: Schema}, {Kind: Database}} {
			for _, got := range []error{Unnamed(err, l, "acme"), Wordless(err, l)} {
				if strings.Contains(got.Error(), "acme") || !errors.Is(got, err) {
					t.Errorf("%s, layout %s: %v", name, l.Kind, got)
				}
			}
		}
	}
	if got := Wordless(fmt.Errorf("x: %w", refused), Layout{Kind: Schema}).Error(); !strings.Contains(got, "42501") {
		t.Errorf("it does not say why: %s", got)
	}
	rows := Layout{Kind: Rows}
	if Unnamed(refused, rows, "7").Error() != refused.Error() || Wordless(refused, rows).Error() != refused.Error() || Unnamed(nil, rows, "") != nil || Wordless(nil, Layout{Kind: Schema}) != nil {
		t.Error("what has no name in its words is changed")
	}
}
