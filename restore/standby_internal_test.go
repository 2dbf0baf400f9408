package restore

import (
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// A standby has live's own settings again but for those that make it one; what isolates
// a copy is in none of its lines, and PostgreSQL reads back what was written.
func TestAStandbysSettingsAreLivesOwn(t *testing.T) {
	const auto = "work_mem = '7MB'\narchive_mode = 'on'\narchive_command = 'cp %p /a/%f'\nsynchronous_standby_names = 'holdfast'\nrecovery_target_time = 'x'\nhba_file = '/etc/hba'\n"
	copied := harmless([]byte(auto), map[string]string{"cluster_name": "x"})
	f := Following{Standby: Standby{Primary: `host=db1 options='-c a=\\b'`, Slot: "s"}, RestoreCommand: FetchCommand("/it's/holdfast", "--config", "/a b"), Readers: false}
	once := string(followed(copied, f.settings(15)))
	for _, want := range []string{
		"\nwork_mem = '7MB'\n", "\narchive_command = 'cp %p /a/%f'\n", "\nsynchronous_standby_names = 'holdfast'\n",
		"\n#holdfast# archive_mode = 'on'\n", "\n#holdfast# recovery_target_time = 'x'\n", "\n#holdfast# hba_file = '/etc/hba'\n",
		"\narchive_mode = 'off'\n", "\nhot_standby = 'off'\n", "\nrecovery_target_timeline = 'latest'\n", "\npromote_trigger_file = ''\n", "\nprimary_slot_name = 's'\n",
		`primary_conninfo = 'host=db1 options=''-c a=\\\\b'''`, `restore_command = '''/it''\\''''s/holdfast'' --config ''/a b'' "%f" "%p"; case`,
	} {
		if !strings.Contains("\n"+once, want) {
			t.Errorf("%q is not in\n%s", want, once)
		}
	}
	for _, no := range []string{"cron.", "max_logical_replication_workers", "cluster_name", "Set by holdfast: a restored copy"} {
		if strings.Contains(once, no) {
			t.Errorf("%q is in\n%s", no, once)
		}
	}
	if _, there := f.settings(16)["promote_trigger_file"]; there {
		t.Error("PostgreSQL 16 has no promote_trigger_file")
	}
	if again := string(followed([]byte(once), f.settings(15))); again != once {
		t.Errorf("written again it is\n%s", again)
	}
	if back := string(harmless([]byte(once), nil)); strings.Contains(back, "hot_standby") || !strings.Contains(back, "archive_mode = 'off'") || strings.Contains(back, "\narchive_command") {
		t.Errorf("made harmless again:\n%s", back)
	}
}

// No reader before replay has passed the moment of every tombstone on the standby's own
// history: one of another history, or that live still holds, is none that it can pass.
func TestAStandbyAdmitsReadersOnceEveryTombstonesMomentIsPassed(t *testing.T) {
	legs := path(2, []lsn.Switch{{Timeline: 1, LSN: 100}})
	tombs := []catalog.Tombstone{{ID: "before"}, {ID: "at"}, {ID: "after"}, {ID: "in live"}, {ID: "branch"}, {ID: "elsewhere"}}
	absences := map[string]catalog.Absent{
		"before": {SystemID: "s", Timeline: 1, LSN: 90}, "at": {SystemID: "s", Timeline: 2, LSN: 200}, "after": {SystemID: "s", Timeline: 2, LSN: 201},
		"branch": {SystemID: "s", Timeline: 1, LSN: 110}, "elsewhere": {SystemID: "t", Timeline: 1, LSN: 1},
	}
	f := Following{Replayed: 200}
	f.judge(tombs, absences, "s", legs)
	if got := strings.Join(f.Passed, " "); got != "before at" || f.Readers {
		t.Errorf("passed %q, readers %v", got, f.Readers)
	}
	var waits []string
	for _, w := range f.Waits {
		waits = append(waits, w.Tombstone+"@"+w.LSN.String())
	}
	if got, want := strings.Join(waits, ", "), "after@0/C9, in live@0/0, branch@0/0, elsewhere@0/0"; got != want {
		t.Errorf("waits for %s, want %s", got, want)
	}
	f.judge(tombs[:2], absences, "s", legs)
	if !f.Readers || f.Waits != nil {
		t.Errorf("%+v", f)
	}
}

func TestAStandbyHasNoTarget(t *testing.T) {
	for want, target := range map[string]Target{
		"":                {Kind: Latest, Standby: &Standby{}},
		"follows live":    {Kind: AtLSN, LSN: 1, Standby: &Standby{}},
		"own timeline":    {Kind: Latest, Timeline: 2, Standby: &Standby{}},
		"needs a primary": {Kind: Latest, Standby: &Standby{StreamOnly: true}},
	} {
		err := target.Check()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", target, err, want)
		}
	}
	if got, want := (Target{Kind: Latest, Standby: &Standby{Primary: "host=a user='b'", Slot: "s", StreamOnly: true}}).flags(), `--standby --primary 'host=a user='\''b'\''' --slot s --stream-only`; got != want {
		t.Errorf("flags %s, want %s", got, want)
	}
}
