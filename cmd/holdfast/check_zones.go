package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/configs"
)

// checkZones sees that each zone is there, is the one meant, and has room; and that
// enough of them are for a write.
func checkZones(ctx context.Context, w *world) []finding {
	errs := w.checkIdentities(ctx)
	out := make([][]finding, len(w.cfg.Repository.Zones))
	var wg sync.WaitGroup
	for i, z := range w.cfg.Repository.Zones {
		name := "zone " + z.Name
		if err := errs[z.Name]; err != nil {
			out[i] = []finding{bad(name, zoneRemedy(z), "%v", err)}
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
			defer cancel()
			if z.S3 != nil {
				out[i] = []finding{judgeSkew(name, z, skewOf(ctx, z))}
				return
			}
			out[i] = checkDirectory(name, z.Directory)
		})
	}
	wg.Wait()
	return append(slices.Concat(out...), judgeQuorum(w.cfg, errs)...)
}

func zoneRemedy(z configs.Zone) string {
	if z.S3 == nil {
		return "see that " + z.Directory + " is mounted and is the right place: its holdfast.json says which zone of which repository it is; `holdfast zone add " + z.Name + "` takes in a new one"
	}
	return "see that the endpoint answers and that the credentials may read and write the bucket; `holdfast zone add " + z.Name + "` takes in a new one"
}

// checkDirectory sees whether a directory zone can be written and has room.
func checkDirectory(name, dir string) []finding {
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return []finding{bad(name, "give the directory to the user that runs holdfast", "%s cannot be written: %v", dir, err)}
	}
	return []finding{judgeRoom(name, dir, "it shows its identity")}
}

// judgeRoom says how full the file system of a directory is.
func judgeRoom(name, dir, well string) finding {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return bad(name, "see that it is mounted", "asking %s for its free room: %v", dir, err)
	}
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	return roomFinding(name, dir, well, free, total)
}

func roomFinding(name, dir, well string, free, total int64) finding {
	const remedy = "make room or enlarge it: a full one stops being written, and its share is owed until it has room again"
	switch {
	case free < 64<<20:
		return bad(name, remedy, "%s has %s free", dir, size(free))
	case free < 1<<30 || total > 0 && free*20 < total:
		return warn(name, remedy, "%s has %s free of %s", dir, size(free), size(total))
	}
	return good(name, "%s: %s, %s free", well, dir, size(free))
}

// skew is how much a store's clock is ahead of ours.
type skew struct {
	by  time.Duration
	err error
}

// skewOf reads the Date of an answer, whatever the answer says.
func skewOf(ctx context.Context, z configs.Zone) skew {
	url := cmp.Or(z.S3.Endpoint, "https://s3."+z.S3.Region+".amazonaws.com")
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}
	if z.S3.CA != nil {
		pem, err := z.S3.CA.Load()
		if err != nil {
			return skew{err: err}
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return skew{err: errors.New("the ca holds no certificate")}
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, http.NoBody)
	if err != nil {
		return skew{err: err}
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	began := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return skew{err: err}
	}
	defer resp.Body.Close()
	at, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return skew{err: fmt.Errorf("the answer has no Date: %w", err)}
	}
	return skew{by: at.Sub(began.Add(time.Since(began) / 2)).Round(time.Second)}
}

func judgeSkew(name string, z configs.Zone, s skew) finding {
	const remedy = "set this host's clock by NTP: S3 services refuse requests that are fifteen minutes off, and locks carry the store's time"
	switch {
	case s.err != nil:
		return warn(name, "", "it shows its identity; its clock could not be read: %v", s.err)
	case s.by.Abs() > 5*time.Minute:
		return bad(name, remedy, "its clock differs from this host's by %s", s.by)
	case s.by.Abs() > 30*time.Second:
		return warn(name, remedy, "its clock differs from this host's by %s", s.by)
	}
	return good(name, "it shows its identity: bucket %s; its clock agrees with this host's", z.S3.Bucket)
}

// judgeQuorum says whether writes can be acknowledged now, and after one more loss.
func judgeQuorum(c *configs.Config, errs map[string]error) []finding {
	need := c.Repository.WriteQuorum
	judge := func(name string, zones []configs.Zone) finding {
		n, up := min(need, len(zones)), 0
		for _, z := range zones {
			if errs[z.Name] == nil {
				up++
			}
		}
		switch {
		case up < n:
			return bad(name, "bring zones back: until then no snapshot and no WAL is acknowledged", "%d of %s can be reached, and a write needs %d", up, count(len(zones), "zone"), n)
		case up == n && len(zones) > n:
			return warn(name, "bring the others back", "%d of %d zones can be reached: the loss of one more stops writes", up, len(zones))
		case len(zones) == 1:
			return warn(name, "add zones in other places: the loss of this one loses everything", "there is one zone alone")
		}
		return good(name, "%d of %s can be reached, and a write needs %d", up, count(len(zones), "zone"), n)
	}
	out := []finding{judge("write quorum", c.Repository.Zones)}
	for _, cl := range c.Clusters {
		if cl.Residency.Given() {
			out = append(out, judge("write quorum of "+cl.Name, c.Repository.Allowed(cl.Residency)))
		}
	}
	return out
}

// checkDigestKeys sees that the repository's keys open with what this node holds.
func checkDigestKeys(ctx context.Context, w *world) []finding {
	ids, err := w.environmentIdentities()
	if err != nil || len(w.index)+len(ids) == 0 {
		return nil // told as a secret that cannot be read, or nothing to open them with
	}
	k, err := w.digestKeys(ctx, 0, ids...)
	if err != nil {
		return []finding{bad("digest keys", "name the identity that the repository was created with; `holdfast init` creates a repository", "%v", err)}
	}
	return []finding{good("digest keys", "epoch %d opens", k.Epoch)}
}
