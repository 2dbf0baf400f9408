package page

import "golang.org/x/sys/cpu"

// mix is what a page costs most: one instruction of AVX2 does eight of its lanes.
func mix(sums *[lanes]uint32, p *[Size]byte) {
	if cpu.X86.HasAVX2 {
		mixAVX2(sums, p)
		return
	}
	mixScalar(sums, p)
}

//go:noescape
func mixAVX2(sums *[lanes]uint32, p *[Size]byte)
