package sandbox

import (
	"io"
	"strings"
	"sync"
)

const (
	tailBytes       = 64 << 10
	defaultLogLimit = 16 << 20
)

// boundedLog passes on the first bytes of a log and remembers the last. It never
// fails a write, for that would block or kill the server.
type boundedLog struct {
	mu   sync.Mutex
	to   io.Writer
	left int64
	tail []byte
}

func newBoundedLog(to io.Writer, limit int64) *boundedLog {
	if limit == 0 {
		limit = defaultLogLimit
	}
	return &boundedLog{to: to, left: limit}
}

// Write implements io.Writer.
func (l *boundedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := min(l.left, int64(len(p))); l.to != nil && n > 0 {
		if _, err := l.to.Write(p[:n]); err != nil {
			l.to = nil
		}
		if l.left -= n; l.left == 0 && l.to != nil {
			_, _ = io.WriteString(l.to, "\n[the log's limit is reached: the rest is not kept]\n")
		}
	}
	l.tail = append(l.tail, p[max(0, len(p)-tailBytes):]...)
	if over := len(l.tail) - tailBytes; over > tailBytes {
		l.tail = append(l.tail[:0], l.tail[over:]...)
	}
	return len(p), nil
}

// Tail is the last 64 KiB.
func (l *boundedLog) Tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.ToValidUTF8(string(l.tail[max(0, len(l.tail)-tailBytes):]), "?")
}
