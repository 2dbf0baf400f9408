package server

import (
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// Problem is an error as the API answers it (RFC 9457), with the exit code that
// the command line ends with.
type Problem struct {
	Title  string              `json:"title"`
	Status int                 `json:"status"`
	Detail string              `json:"detail"`
	Remedy string              `json:"remedy,omitempty"`
	Exit   int                 `json:"exit"`
	Errors []*huma.ErrorDetail `json:"errors,omitempty"`
}

func (p *Problem) Error() string { return p.Detail }

// GetStatus makes a Problem a [huma.StatusError].
func (p *Problem) GetStatus() int { return p.Status }

// ContentType says that it is a problem document.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// statusOf gives each exit code its HTTP status.
var statusOf = map[int]int{
	1: http.StatusInternalServerError,
	2: http.StatusUnprocessableEntity,
	3: http.StatusConflict,
	4: http.StatusFailedDependency,
}

// NewProblem makes the problem that ends a command with exit.
func NewProblem(exit int, detail, remedy string) *Problem {
	status, ok := statusOf[exit]
	if !ok {
		exit, status = 1, http.StatusInternalServerError
	}
	return &Problem{Title: http.StatusText(status), Status: status, Detail: detail, Remedy: remedy, Exit: exit}
}

func asProblem(err error) error {
	var own interface{ Problem() *Problem }
	if errors.As(err, &own) {
		return own.Problem()
	}
	if p := new(Problem); errors.As(err, &p) {
		return p
	}
	return NewProblem(1, err.Error(), "")
}

// newProblem is what huma itself answers with: bad requests, mostly.
func newProblem(status int, msg string, errs ...error) huma.StatusError {
	exit := 1
	if status >= 400 && status < 500 {
		exit = 2
	}
	p := &Problem{Title: http.StatusText(status), Status: status, Detail: msg, Exit: exit}
	for _, err := range errs {
		var d huma.ErrorDetailer
		if errors.As(err, &d) {
			p.Errors = append(p.Errors, d.ErrorDetail())
		} else if err != nil {
			p.Errors = append(p.Errors, &huma.ErrorDetail{Message: err.Error()})
		}
	}
	return p
}
