//go:build !amd64

package page

func mix(sums *[lanes]uint32, p *[Size]byte) { mixScalar(sums, p) }
