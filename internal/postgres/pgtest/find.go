package pgtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

const debian = "/usr/lib/postgresql"

// Installed lists the major versions that a test can ask for, of 14 to 18.
func Installed() []int {
	var majors []int
	for m := 14; m <= 18; m++ {
		if _, _, err := find(m); err == nil {
			majors = append(majors, m)
		}
	}
	return majors
}

// InstalledWith lists those of them that have a program of their own.
func InstalledWith(program string) []int {
	return slices.DeleteFunc(Installed(), func(m int) bool {
		bin, _, _ := find(m)
		return !executable(filepath.Join(bin, program))
	})
}

// find gives the programs of a major version; 0 is the one that HOLDFAST_PG_MAJOR
// names, else the first installed of 15, 16, 17, 18 and 14.
func find(want int) (bin string, major int, err error) {
	majors := []int{want}
	if chosen := os.Getenv("HOLDFAST_PG_MAJOR"); want == 0 && chosen != "" {
		if majors[0], err = strconv.Atoi(chosen); err != nil {
			return "", 0, fmt.Errorf("HOLDFAST_PG_MAJOR=%s: want 14 to 18", chosen)
		}
	} else if want == 0 {
		majors = []int{15, 16, 17, 18, 14}
	}
	var tried []string
	for _, m := range majors {
		for _, dir := range candidates(m) {
			if executable(filepath.Join(dir, "postgres")) {
				// The server's user may be able to enter the place itself only.
				dir, err = filepath.EvalSymlinks(dir)
				return dir, m, err
			}
			tried = append(tried, dir)
		}
	}
	return "", 0, fmt.Errorf("no PostgreSQL server program in %v: install Debian's postgresql-%d, or run `make majors`", tried, majors[0])
}

func candidates(major int) []string {
	m := strconv.Itoa(major)
	dirs := []string{filepath.Join(debian, m, "bin")}
	if tools := os.Getenv("HOLDFAST_TOOLS"); tools != "" {
		dirs = append(dirs, filepath.Join(tools, "pg", m, "bin"), filepath.Join(tools, "..", "pg", m, "bin"))
	}
	if root := moduleRoot(); root != "" {
		dirs = append(dirs, filepath.Join(root, ".tools", "pg", m, "bin"))
	}
	return dirs
}

// program finds a program beside the server or else in Debian's newest version.
func program(bin, name string) (string, error) {
	if p := filepath.Join(bin, name); executable(p) {
		return p, nil
	}
	for m := 19; m >= 14; m-- {
		if p := filepath.Join(debian, strconv.Itoa(m), "bin", name); executable(p) {
			return p, nil
		}
	}
	return "", fmt.Errorf("no program %s in %s nor in %s: install Debian's postgresql-15", name, bin, debian)
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// moduleRoot is where go.mod lies: tests run in their package's directory.
func moduleRoot() string {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return ""
}
