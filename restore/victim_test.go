package restore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/restore"
)

// victim is a restore in a process of its own, to be killed.
func victim(spec string) {
	var v struct {
		Dirs                                            []string
		VKey, Data, Index, Program, Binaries, To, Phase string
		Delta                                           bool
		Keys                                            [32]byte
		Plan                                            restore.Plan
	}
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	if err := json.Unmarshal([]byte(spec), &v); err != nil {
		fail(err)
	}
	w := &world{dirs: v.Dirs, program: v.Program, keys: seal.DigestKeys{Epoch: 1, Key: v.Keys}}
	trust, err := seal.NewTrust([]seal.TrustedSigner{{VKey: v.VKey, Clusters: []string{"*"}, May: []string{"snapshot", "wal", "tombstone", "ledger"}}})
	if err != nil {
		fail(err)
	}
	w.trust = trust
	for i, name := range zoneNames {
		d, err := dirzone.New(v.Dirs[i])
		if err != nil {
			fail(err)
		}
		w.zones = append(w.zones, zone.Open(name, d, identity(name), zone.Options{}))
	}
	if w.vault, err = vault.Open(vault.Config{Zones: w.zones, Quorum: 2}); err != nil {
		fail(err)
	}
	if w.data, err = age.ParseX25519Identity(v.Data); err != nil {
		fail(err)
	}
	w.index = w.data
	room, err := restore.Prepare(context.Background(), w.repo(), v.Plan, restore.Options{To: v.To, Program: v.Program, Binaries: v.Binaries, Delta: v.Delta, Digests: w.digests, Progress: func(p restore.Progress) {
		if p.Phase == v.Phase && (p.Phase != "fetch" || 4*p.Done > 3*p.Total) {
			self, _ := os.FindProcess(os.Getpid())
			_ = self.Kill()
			select {}
		}
	}})
	if err == nil && v.Phase == "" {
		if err = room.Close(context.Background()); err == nil {
			os.Exit(0)
		}
	}
	fail(fmt.Errorf("the restore was not killed in %q: %w", v.Phase, err))
}
