package approval

import "testing"

type plan struct {
	Hash string            `json:"hash"`
	What string            `json:"what"`
	Args map[string]string `json:"args"`
}

func TestHashCoversEverythingButItself(t *testing.T) {
	p := plan{What: "remove", Args: map[string]string{"a": "1", "b": "2"}}
	first, err := Hash(p)
	if err != nil {
		t.Fatal(err)
	}
	p.Hash = first
	if again, _ := Hash(p); again != first {
		t.Errorf("setting the hash changed it: %s, then %s", first, again)
	}
	p.Args["b"] = "3"
	if other, _ := Hash(p); other == first {
		t.Error("another plan has the same hash")
	}
}

func TestHashRefusesWhatIsNoPlan(t *testing.T) {
	for _, v := range []any{"text", []int{1}, make(chan int)} {
		if h, err := Hash(v); err == nil {
			t.Errorf("Hash(%T) = %s, want an error", v, h)
		}
	}
}
