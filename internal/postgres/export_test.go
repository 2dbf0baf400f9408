package postgres

import (
	"context"

	"github.com/jackc/pgx/v5/pgproto3"
)

var (
	StartSQL      = startSQL
	StopSQL       = stopSQL
	BaseBackupSQL = baseBackupSQL
	CreateSlotSQL = createSlotSQL
	StreamSQL     = streamSQL
	ParseMessage  = parseMessage
	StatusMessage = statusMessage
	Summarizes    = summarizes
	WholeLabel    = wholeLabel
)

type script []pgproto3.BackendMessage

func (s *script) ReceiveMessage(ctx context.Context) (pgproto3.BackendMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(*s) == 0 {
		return nil, context.DeadlineExceeded
	}
	m := (*s)[0]
	*s = (*s)[1:]
	return m, nil
}

// ReadBackup reads a base backup that a hostile or broken server might send.
func ReadBackup(num int, o BaseBackupOptions, sink Sink, said ...pgproto3.BackendMessage) (BaseBackupResult, error) {
	s := script(said)
	r := newBackupReader(context.Background(), &s, num, o, sink)
	err := r.run()
	return r.out, err
}
