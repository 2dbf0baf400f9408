package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// epoch is where PostgreSQL's clock begins; the protocol counts microseconds.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// parseMessage reads XLogData ('w') and the keepalive ('k')
// (doc/src/sgml/protocol.sgml, Streaming Replication Protocol).
func parseMessage(data []byte) (Msg, error) {
	if len(data) == 0 {
		return Msg{}, errors.New("an empty message in the stream")
	}
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(data[at:]) }
	when := func(at int) time.Time {
		us := int64(u64(at))
		return epoch.Add(time.Duration(us/1e6)*time.Second + time.Duration(us%1e6)*time.Microsecond)
	}
	switch {
	case data[0] == 'w' && len(data) >= 25:
		m := Msg{Kind: Data, Start: lsn.LSN(u64(1)), ServerEnd: lsn.LSN(u64(9)), ServerTime: when(17), Data: data[25:]}
		if uint64(m.Start)+uint64(len(m.Data)) < uint64(m.Start) {
			return Msg{}, fmt.Errorf("WAL from %s is beyond the end of all WAL", m.Start)
		}
		return m, nil
	case data[0] == 'k' && len(data) == 18:
		return Msg{Kind: Keepalive, ServerEnd: lsn.LSN(u64(1)), ServerTime: when(9), ReplyRequested: data[17] == 1}, nil
	}
	return Msg{}, fmt.Errorf("a message of kind %q and %d bytes in the stream, want WAL or a keepalive", data[0], len(data))
}

// statusMessage is a standby status update ('r').
func statusMessage(write, flush, apply lsn.LSN, now time.Time, reply bool) []byte {
	b := make([]byte, 0, 34)
	b = append(b, 'r')
	b = binary.BigEndian.AppendUint64(b, uint64(write))
	b = binary.BigEndian.AppendUint64(b, uint64(flush))
	b = binary.BigEndian.AppendUint64(b, uint64(apply))
	b = binary.BigEndian.AppendUint64(b, uint64(now.Sub(epoch).Microseconds()))
	if reply {
		return append(b, 1)
	}
	return append(b, 0)
}
