package datadir

import "testing"

func TestParseRelationKnowsEveryFormOfName(t *testing.T) {
	for path, want := range map[string]RelationFile{
		"global/1262":       {GlobalTablespace, 0, 1262, Main, 0},
		"base/5/16384":      {DefaultTablespace, 5, 16384, Main, 0},
		"base/5/16384.12":   {DefaultTablespace, 5, 16384, Main, 12},
		"base/5/16384_fsm":  {DefaultTablespace, 5, 16384, FSM, 0},
		"base/5/16384_vm.1": {DefaultTablespace, 5, 16384, VM, 1},
		"base/5/16384_init": {DefaultTablespace, 5, 16384, Init, 0},
		"pg_tblspc/16400/PG_15_202209061/5/4294967295": {16400, 5, 4294967295, Main, 0},
	} {
		if got, ok := ParseRelation(path); !ok || got != want {
			t.Errorf("%s: %+v %v", path, got, ok)
		}
	}
	for _, path := range []string{
		"global/pg_control", "global/pg_filenode.map", "base/5/PG_VERSION", "base/5/pg_filenode.map", "16384",
		"base/5/16384.0", "base/5/16384.", "base/5/16384_tmp", "base/5/016384", "base/5/4294967296", "base/5/t3_16384",
		"base/x/16384", "base/5/6/16384", "pg_xact/0000", "pg_tblspc/16400/OTHER/5/1", "base/5/", "base/5/-1", "base/5/_fsm",
	} {
		if got, ok := ParseRelation(path); ok {
			t.Errorf("%s: taken for %+v", path, got)
		}
	}
}

// C-12
func TestTemporaryNames(t *testing.T) {
	for name, want := range map[string]bool{
		"t3_16384": true, "t3_16384.1": true, "t3_16384_fsm": true, "t12_16384_vm.2": true,
		"t_16384": false, "t3_": false, "t3_x": false, "3_16384": false, "tx_1": false, "t3": false,
	} {
		if temporary(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func FuzzParseRelation(f *testing.F) {
	f.Add("base/5/16384_vm.1")
	f.Add("pg_tblspc/1/PG_15_1/5/t3_1")
	f.Fuzz(func(t *testing.T, p string) {
		if r, ok := ParseRelation(p); ok && (r.Fork == "" || r.Tablespace == 0 && p[:2] != "pg") {
			t.Fatalf("%q: %+v", p, r)
		}
		temporary(p)
	})
}
