# pgBackRest at zstd level 1, whatever the level of the others.
BENCH_LEVEL=1
. "$(dirname "${BASH_SOURCE[0]}")/pgbackrest.sh"
