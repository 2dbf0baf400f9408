package configs

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a span of time, written in d, h, m, s and ms: "400d", "1h30m".
// A day is 24 hours.
type Duration time.Duration

var durationUnits = []struct {
	name string
	span time.Duration
}{
	{"d", 24 * time.Hour},
	{"h", time.Hour},
	{"m", time.Minute},
	{"s", time.Second},
	{"ms", time.Millisecond},
}

const durationMeant = `a duration such as 7d, 1h30m, 5s or 500ms, largest unit first`

// ParseDuration reads what [Duration.String] writes.
func ParseDuration(text string) (Duration, error) {
	rest, total, next := text, time.Duration(0), 0
	if text == "" {
		return 0, errors.New(durationMeant)
	}
	for rest != "" {
		n, unit, tail, err := numberAndUnit(rest)
		if err != nil {
			return 0, errors.New(durationMeant)
		}
		i := next
		for i < len(durationUnits) && durationUnits[i].name != unit {
			i++
		}
		if i == len(durationUnits) {
			return 0, errors.New(durationMeant)
		}
		span := durationUnits[i].span
		if n > (math.MaxInt64-int64(total))/int64(span) {
			return 0, errors.New("a duration below 292 years")
		}
		total += time.Duration(n) * span
		rest, next = tail, i+1
	}
	return Duration(total), nil
}

// numberAndUnit splits "90m20s" into 90, "m" and "20s".
func numberAndUnit(s string) (n int64, unit, rest string, err error) {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	j := i
	for j < len(s) && (s[j] < '0' || s[j] > '9') {
		j++
	}
	n, err = strconv.ParseInt(s[:i], 10, 64)
	return n, s[i:j], s[j:], err
}

// Std is the duration as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string {
	if d <= 0 {
		return "0s"
	}
	var b strings.Builder
	rest := time.Duration(d)
	for _, u := range durationUnits {
		if n := rest / u.span; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			rest -= n * u.span
		}
	}
	return b.String()
}

func (d *Duration) parseScalar(text string) (err error) { *d, err = ParseDuration(text); return err }

// MarshalText is [Duration.String].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Size is a number of bytes, written with B, KiB, MiB, GiB or TiB: "512MiB".
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

const sizeMeant = "a size such as 512MiB (B, KiB, MiB, GiB, TiB)"

// ParseSize reads what [Size.String] writes; 0 needs no unit.
func ParseSize(text string) (Size, error) {
	if text == "0" {
		return 0, nil
	}
	n, unit, rest, err := numberAndUnit(text)
	if err != nil || rest != "" {
		return 0, errors.New(sizeMeant)
	}
	for _, u := range sizeUnits {
		if u.name != unit {
			continue
		}
		if n > math.MaxInt64/u.bytes {
			return 0, errors.New("a size below 8 EiB")
		}
		return Size(n * u.bytes), nil
	}
	return 0, errors.New(sizeMeant)
}

func (s Size) String() string {
	for _, u := range sizeUnits {
		if s > 0 && int64(s)%u.bytes == 0 {
			return fmt.Sprintf("%d%s", int64(s)/u.bytes, u.name)
		}
	}
	return "0"
}

func (s *Size) parseScalar(text string) (err error) { *s, err = ParseSize(text); return err }

// MarshalText is [Size.String].
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Rate is bytes per second, written as a size per second: "200MiB/s".
type Rate int64

// ParseRate reads what [Rate.String] writes; 0, no limit, needs no unit.
func ParseRate(text string) (Rate, error) {
	size, perSecond := strings.CutSuffix(text, "/s")
	if !perSecond && text != "0" {
		return 0, errors.New("a rate such as 200MiB/s, or 0 for no limit")
	}
	s, err := ParseSize(size)
	if err != nil {
		return 0, errors.New("a rate such as 200MiB/s, or 0 for no limit")
	}
	return Rate(s), nil
}

func (r Rate) String() string {
	if r <= 0 {
		return "0"
	}
	return Size(r).String() + "/s"
}

func (r *Rate) parseScalar(text string) (err error) { *r, err = ParseRate(text); return err }

// MarshalText is [Rate.String].
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }
