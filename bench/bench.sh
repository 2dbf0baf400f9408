#!/usr/bin/env bash
# `make bench`: Holdfast beside pgBackRest, pg_basebackup | zstd | age, and restic on this machine, in one run, on the
# CMS data; then what bounds any of them. Prints the tables and writes docs/results/<date>-bench.md. Everything runs in
# one scratch directory and on 127.0.0.1; nothing of it is left. What is missing is installed by apt, as root.
#
#   BENCH_MB=1000           database size: 3000 for the record, 30 to see that it works
#   BENCH_RUNS=3            medians of so many
#   BENCH_REPOS=file,s3     a directory, an S3 server over TLS
#   BENCH_TOOLS=…           adapters, see bench/README.md (walg.sh or others by path)
#   BENCH_STEPS=full,incr,incr1,incr5,restore,delta
#   BENCH_SEGMENTS=200      WAL segments that are pushed, fetched and replayed, on pgbench's data; 0: none, and no commits
#   BENCH_WAL_STEPS=push,get,replay,commit
#   BENCH_SMALL=6           a second database, of so many MB: a cluster of some 54 MB, where fixed waits show; 0: none
#   BENCH_GROWTH=           sizes in MB (1000,3000,10000 for the record): how increments grow where 2,000 pages change
#   BENCH_SETTLE=20         seconds to wait at most for a quiet machine before each command
#   BENCH_COLD=             1: nothing of what a step reads is in the page cache; else all of it, for every tool
#   BENCH_NOTE=…            a sentence for the report, as what else ran meanwhile
#   BENCH_OUT=…             the report, instead of docs/results/<date>-bench.md
set -euo pipefail
cd "$(dirname "$0")/.."
mb=${BENCH_MB:-1000} runs=${BENCH_RUNS:-3} repos=${BENCH_REPOS:-file,s3} steps=${BENCH_STEPS:-full,incr,incr1,incr5,restore,delta}
tools=${BENCH_TOOLS:-holdfast,holdfast3,pgbackrest,pgbackrest1,basebackup,restic}
out=${BENCH_OUT:-docs/results/$(date -u +%Y-%m-%d)-bench.md}
holdfast=${1:?the Holdfast binary to measure; make bench builds it}

work=$(mktemp -d "${TMPDIR:-/tmp}/holdfast-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
chmod 755 "$work"
install -m 755 "$holdfast" "$work/holdfast" # where the user who runs PostgreSQL can reach it
install -m 755 "$(dirname "$holdfast")/holdfast-wal" "$work/holdfast-wal"
export HOLDFAST=$work/holdfast

busy() { awk '{ print $1 }' /proc/loadavg; }
before=$(busy)
SCALE=$mb bash bench/peers.sh --install --data cms --tools "$tools" --repos "$repos" --steps "$steps" --runs "$runs" \
  --budget "${BENCH_BUDGET:-7200}" --timeout 1200 --settle "${BENCH_SETTLE:-20}" ${BENCH_COLD:+--cold} --work "$work/peers" --keep --out "$work/table"
segments=${BENCH_SEGMENTS:-200}
[ "$segments" = 0 ] || SCALE=${BENCH_SCALE:-50} bash bench/peers.sh --tools holdfast,pgbackrest --repos file --steps "${BENCH_WAL_STEPS:-push,get,replay,commit}" \
  --segments "$segments" --runs "$runs" --budget "${BENCH_BUDGET:-7200}" --settle "${BENCH_SETTLE:-20}" --work "$work/wal" --keep --out "$work/waltable"
small=${BENCH_SMALL:-6}
[ "$small" = 0 ] || SCALE=$small bash bench/peers.sh --data cms --tools holdfast,pgbackrest --repos file --steps full --runs "$runs" \
  --budget 600 --settle "${BENCH_SETTLE:-20}" --work "$work/small" --keep --out "$work/smalltable"
growth=${BENCH_GROWTH:-}
for size in ${growth//,/ }; do
  SCALE=$size bash bench/peers.sh --data cms --tools holdfast --repos file --steps full,incr2000 --runs 1 \
    --budget "${BENCH_BUDGET:-7200}" --timeout 1200 --settle "${BENCH_SETTLE:-20}" --work "$work/growth-$size" --keep --out "$work/growth-$size.table"
  rm -rf "$work/growth-$size/src" "$work/growth-$size/repo"*
done
find "$work/peers/src/base" -type f -size +1M -name '[0-9]*' -print0 | sort -z | xargs -0 cat 2>/dev/null | { head -c 400M; cat >/dev/null; } >"$work/pages"

{
  echo "# Bench, $(date -u +%Y-%m-%dT%H:%MZ)"
  echo
  echo "- commit $(git rev-parse --short HEAD), $(git status --porcelain --untracked-files=no | wc -l) files changed since; $("$HOLDFAST" version)"
  echo "- $(nproc) processors ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)), $(awk '/MemTotal/ { printf "%d GiB", $2 / 1048576 }' /proc/meminfo), $(uname -sr), on $(stat -f -c %T "$work"), page cache ${BENCH_COLD:+not }warm; load $before before and $(busy) after"
  [ -z "${BENCH_NOTE:-}" ] || echo "- $BENCH_NOTE"
  echo "- $tools; \`pgbackrest1\` is pgBackRest at zstd level 1, \`holdfast3\` is Holdfast with three zones and a quorum of two"
  echo "- pgBackRest is the distribution's: up to 2.45 it copies whole files that changed. Nothing is claimed against newer ones, whose increments are of blocks."
  echo
  python3 bench/ratios.py "$work/peers/rows.jsonl"
  if [ "$small" != 0 ]; then
    echo
    echo "## A small cluster: $(du -sm --exclude=pg_wal "$work/small/src" | cut -f1) MB without its WAL, a full snapshot, at most 0.5 s asked"
    echo
    python3 bench/ratios.py "$work/small/rows.jsonl"
  fi
  for size in ${growth//,/ }; do
    echo
    echo "## Growth: 2,000 pages changed of $size MB"
    echo
    python3 bench/ratios.py "$work/growth-$size/rows.jsonl"
  done
  if [ "$segments" != 0 ]; then
    echo
    echo "## WAL: $segments segments of a pgbench load, to and from a directory"
    echo
    python3 bench/ratios.py "$work/wal/rows.jsonl"
    echo
    cat "$work/waltable"
    echo
    echo "\`commit-N\`: N clients whose commits wait for Holdfast as the synchronous standby, and alone."
    echo
    echo "### Streaming a backlog, three zones and a quorum of two, pure CPU of the archiver"
    echo
    ${GO:-go} test ${BENCH_TAGS:+-tags "$BENCH_TAGS"} -run '^$' -bench 'Stream' -benchtime 3x ./snapshot | grep ^Benchmark | sed 's/^/    /'
  fi
  echo
  echo "### Limits of this machine, on 400 MB of these pages"
  echo
  python3 bench/limits.py "$work/pages"
  HOLDFAST_BENCH_PAGES=$work/pages ${GO:-go} test ${BENCH_TAGS:+-tags "$BENCH_TAGS"} -run '^$' -bench 'CompressAndSeal' -benchtime 2x -count 3 ./internal/seal |
    awk '/MB\/s/ { for (i = 1; i < NF; i++) if ($(i + 1) == "MB/s" && $i > best) best = $i } END { printf "| Holdfast: compress and seal in memory, every core | %.0f | |\n", best }'
  echo
  cat "$work/table"
} >"$work/report"
mkdir -p "$(dirname "$out")"
install -m 644 "$work/report" "$out"
cat "$out"
echo "written: $out"
