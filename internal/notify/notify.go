// Package notify tells people, by webhook, what happened.
//
// A message is a JSON document, posted once and, if that fails, twice more; what
// could not be told is logged, because a receiver that is away must hold up
// nothing. Addresses are secrets: they never appear in an error or a log. It never
// decides what is worth telling.
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
)

// Receiver is one webhook and what it is told.
type Receiver struct {
	Name string
	URL  string
	On   []string // incident, drill, snapshot, certificate
}

// Notifier tells receivers. The nil Notifier tells nobody.
type Notifier struct {
	receivers []Receiver
	client    *http.Client
	log       *zap.Logger
	wg        sync.WaitGroup
	slots     chan struct{}
}

// New checks the addresses.
func New(receivers []Receiver, log *zap.Logger) (*Notifier, error) {
	for _, r := range receivers {
		if u, err := url.Parse(r.URL); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, fmt.Errorf("notify %s: its address is no http or https URL", r.Name)
		}
	}
	return &Notifier{receivers: receivers, client: &http.Client{Timeout: 10 * time.Second}, log: log, slots: make(chan struct{}, 16)}, nil
}

// Message is what is posted.
type Message struct {
	Event string    `json:"event"`
	At    time.Time `json:"at"`
	About any       `json:"about"`
}

// Send tells everyone who is to hear of event, behind the caller's back. When too
// many messages are under way it drops one and logs that.
func (n *Notifier) Send(ctx context.Context, event string, about any) {
	if n == nil {
		return
	}
	body, err := json.Marshal(Message{event, time.Now().UTC(), about})
	if err != nil {
		n.log.Error("cannot write a notification", zap.String("event", event), zap.Error(err))
		return
	}
	ctx = context.WithoutCancel(ctx)
	for _, r := range n.receivers {
		if !slices.Contains(r.On, event) {
			continue
		}
		select {
		case n.slots <- struct{}{}:
		default:
			n.log.Error("too many notifications under way; one is dropped", zap.String("receiver", r.Name), zap.String("event", event))
			continue
		}
		n.wg.Go(func() {
			defer func() { <-n.slots }()
			if err := n.post(ctx, r, body); err != nil {
				n.log.Error("cannot notify", zap.String("receiver", r.Name), zap.String("event", event), zap.Error(err))
			}
		})
	}
}

// Wait returns when nothing is under way any more.
func (n *Notifier) Wait() {
	if n != nil {
		n.wg.Wait()
	}
}

func (n *Notifier) post(ctx context.Context, r Receiver, body []byte) error {
	try := func() (struct{}, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL, bytes.NewReader(body))
		if err != nil {
			return struct{}{}, backoff.Permanent(errors.New("its address is refused"))
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := n.client.Do(req)
		if err != nil {
			// A url.Error prints the address.
			if e := new(url.Error); errors.As(err, &e) {
				err = e.Err
			}
			return struct{}{}, err
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 300 {
			return struct{}{}, fmt.Errorf("it answered %s", resp.Status)
		}
		return struct{}{}, nil
	}
	_, err := backoff.Retry(ctx, try, backoff.WithMaxTries(3))
	return err
}
