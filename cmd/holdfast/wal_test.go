package main

import (
	"testing"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

func TestWhatRetentionLetGoIsNoGapAndWhatItDidNotIsOne(t *testing.T) {
	span := func(epoch int, from, to uint64) catalog.WALSpan {
		return catalog.WALSpan{Epoch: epoch, Timeline: 1, From: lsn.LSN(from), To: lsn.LSN(to)}
	}
	marks := []catalog.Forgotten{{WAL: []catalog.WALSpan{span(1, 20, 30)}}, {WAL: []catalog.WALSpan{span(1, 5, 20), span(2, 30, 40)}}}
	for _, c := range []struct {
		gap  catalog.WALSpan
		want bool
	}{
		{span(1, 10, 30), true}, {span(1, 5, 25), true}, {span(1, 10, 31), false}, {span(1, 4, 30), false}, {span(2, 10, 30), false}, {span(1, 40, 50), false},
	} {
		if got := letGo(c.gap, marks); got != c.want {
			t.Errorf("%+v: %v", c.gap, got)
		}
	}
}
