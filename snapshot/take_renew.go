package snapshot

import (
	"cmp"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// A pack is sparse when less than this share of it is in use; of all that is in
// use, a sixteenth at most is copied afresh on that account by one snapshot.
const (
	sparseBelow = 0.70
	sparseShare = 16
)

// renewPacks says of each pack of the base whether what lies there must be copied
// afresh from the database: all that are older than renewAfter, so that no snapshot
// refers to them; of those past half of that age as much as the time since the base
// demands, oldest first, so that they do not all come at once; and of the sparse
// ones a share, sparsest first. renewAfter 0: age does not matter.
func renewPacks(packs []catalog.ManifestPack, now, since time.Time, renewAfter time.Duration) []bool {
	renew := make([]bool, len(packs))
	var inUse int64
	var ageing, sparse []int
	for i, p := range packs {
		inUse += p.Live
		age, ok := ageOf(p.Ref, now)
		switch {
		case renewAfter > 0 && (!ok || age >= renewAfter):
			renew[i] = true
		case renewAfter > 0 && age >= renewAfter/2:
			ageing = append(ageing, i)
		case float64(p.Live) < sparseBelow*float64(p.Raw):
			sparse = append(sparse, i)
		}
	}
	if renewAfter > 0 {
		slices.SortStableFunc(ageing, func(a, b int) int { return cmp.Compare(begunAt(packs[a]), begunAt(packs[b])) })
		part := min(1, max(0, float64(now.Sub(since))/float64(renewAfter/2)))
		choose(renew, packs, ageing, int64(part*float64(inUse)))
	}
	slices.SortStableFunc(sparse, func(a, b int) int {
		return cmp.Compare(float64(packs[a].Live)/float64(packs[a].Raw), float64(packs[b].Live)/float64(packs[b].Raw))
	})
	choose(renew, packs, sparse, inUse/sparseShare)
	return renew
}

// clockSkew is by how much the clocks of a cluster's nodes may differ.
const clockSkew = time.Hour

// ageOf is how long ago the snapshot of an object began. One that claims to be of
// the future began while a clock was wrong: nobody knows how old it is, and by its
// name it would stay young for as long as that clock was ahead.
func ageOf(r catalog.Ref, now time.Time) (age time.Duration, known bool) {
	begun, ok := catalog.BegunAt(r.Name)
	age = now.Sub(begun)
	return age, ok && age >= -clockSkew
}

func begunAt(p catalog.ManifestPack) int64 {
	at, _ := catalog.BegunAt(p.Ref.Name)
	return at.Unix()
}

// choose marks packs in order until what they hold in use comes to budget bytes;
// at least one, so that small clusters get there too.
func choose(renew []bool, packs []catalog.ManifestPack, order []int, budget int64) {
	for n, i := range order {
		if budget -= packs[i].Live; budget < 0 && n > 0 {
			return
		}
		renew[i] = true
	}
}

// compactMaps says of each map object of the base whether its leaves move into a
// new one: it is older than renewAfter, or less than half of it is in use.
func compactMaps(maps []catalog.ManifestMap, now time.Time, renewAfter time.Duration) []bool {
	compact := make([]bool, len(maps))
	for i, m := range maps {
		age, ok := ageOf(m.Ref, now)
		compact[i] = 2*m.Live < m.Raw || renewAfter > 0 && (!ok || age >= renewAfter)
	}
	return compact
}

// oldest is when the oldest snapshot began whose objects are named.
func oldest(own time.Time, packs []catalog.ManifestPack, maps []catalog.ManifestMap) time.Time {
	least := own
	look := func(r catalog.Ref) {
		if at, ok := catalog.BegunAt(r.Name); ok && at.Before(least) {
			least = at
		}
	}
	for _, p := range packs {
		look(p.Ref)
	}
	for _, m := range maps {
		look(m.Ref)
	}
	return least
}
