package configs

import "testing"

func TestExamplesParse(t *testing.T) {
	for name, text := range map[string][]byte{"holdfast": Example(), "drill": DrillExample()} {
		if _, err := Parse(text, name+".example.yaml"); err != nil {
			t.Errorf("%v", err)
		}
	}
}
