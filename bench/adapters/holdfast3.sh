# Holdfast with three zones and a quorum of two: what it is made for, and three times the bytes of anybody else here.
HOLDFAST_ZONES=3
. "$(dirname "${BASH_SOURCE[0]}")/holdfast.sh"
