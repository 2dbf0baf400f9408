package catalog

import (
	"cmp"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// WALState says how a zone stands to a stretch of WAL.
type WALState string

// The states of a stretch in a zone.
const (
	WALFound     WALState = "FOUND"     // the zone holds it
	WALDelayed   WALState = "DELAYED"   // another zone holds it, or one that does not answer may
	WALUploading WALState = "UPLOADING" // came from the server, and is on its way to the quorum
	WALLost      WALState = "LOST"      // no zone holds it, and nobody brings it
)

// WALRun is a stretch of WAL in one state.
type WALRun struct {
	WALSpan
	State WALState `json:"state"`
}

// WALView is what is known of the stretches that one zone should hold.
type WALView struct {
	Mine   []WALSpan // the zone's own
	Any    []WALSpan // of all zones that answered
	Coming []WALSpan // received, and not yet in the quorum
	Gone   []WALSpan // let go by retention: their absence is no hole
	Doubt  bool      // so few zones answered that the others may hold more
}

// Runs tells from the first to the last position of each lineage and timeline
// how the zone stands, in order.
func (v WALView) Runs() []WALRun {
	mine, any, coming, gone := JoinWAL(v.Mine), JoinWAL(v.Any), JoinWAL(v.Coming), JoinWAL(v.Gone)
	var out []WALRun
	for _, piece := range cutWAL(slices.Concat(mine, any, coming)) {
		r := WALRun{piece, WALLost}
		switch {
		case coversWAL(mine, piece):
			r.State = WALFound
		case coversWAL(any, piece):
			r.State = WALDelayed
		case coversWAL(coming, piece):
			r.State = WALUploading
		case v.Doubt:
			r.State = WALDelayed
		}
		if n := len(out); n > 0 && out[n-1].State == r.State && sameWAL(out[n-1].WALSpan, piece) && out[n-1].To == piece.From {
			out[n-1].To = piece.To
			continue
		}
		out = append(out, r)
	}
	return slices.DeleteFunc(out, func(r WALRun) bool {
		return (r.State == WALLost || r.State == WALDelayed) && coversWAL(gone, r.WALSpan)
	})
}

// JoinWAL sorts spans and joins those that touch.
func JoinWAL(spans []WALSpan) []WALSpan {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, compareWAL)
	var out []WALSpan
	for _, s := range spans {
		if n := len(out); n > 0 && sameWAL(out[n-1], s) && s.From <= out[n-1].To {
			out[n-1].To = max(out[n-1].To, s.To)
		} else if s.From < s.To {
			out = append(out, s)
		}
	}
	return out
}

// cutWAL cuts everything between the first and the last position of each
// timeline at every end of a span.
func cutWAL(spans []WALSpan) (out []WALSpan) {
	type place struct {
		key WALSpan // without positions
		at  lsn.LSN
	}
	var places []place
	for _, s := range spans {
		key := WALSpan{Epoch: s.Epoch, Timeline: s.Timeline}
		places = append(places, place{key, s.From}, place{key, s.To})
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Or(compareWAL(a.key, b.key), cmp.Compare(a.at, b.at)) })
	for i := 1; i < len(places); i++ {
		if a, b := places[i-1], places[i]; a.key == b.key && a.at < b.at {
			out = append(out, WALSpan{Epoch: a.key.Epoch, Timeline: a.key.Timeline, From: a.at, To: b.at})
		}
	}
	return out
}

// coversWAL says whether one of joined spans holds all of s.
func coversWAL(joined []WALSpan, s WALSpan) bool {
	i, _ := slices.BinarySearchFunc(joined, s, func(have, want WALSpan) int {
		return cmp.Or(cmp.Compare(have.Epoch, want.Epoch), cmp.Compare(have.Timeline, want.Timeline), cmp.Compare(have.To, want.To))
	})
	return i < len(joined) && sameWAL(joined[i], s) && joined[i].From <= s.From
}

func sameWAL(a, b WALSpan) bool { return a.Epoch == b.Epoch && a.Timeline == b.Timeline }

func compareWAL(a, b WALSpan) int {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Timeline, b.Timeline), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
}

// walKey tells which WAL object a note or an object's name is about: the
// directory and the first digits of the MAC.
func walKey(name string) string {
	dir, base := name[:strings.LastIndexByte(name, '/')+1], name[strings.LastIndexByte(name, '/')+1:]
	base, _, _ = strings.Cut(base, ".note")
	base = strings.TrimSuffix(base, ".age")
	mac := base[strings.LastIndexByte(base, '-')+1:]
	if len(mac) > 8 {
		mac = mac[:8]
	}
	return dir + mac
}
