#!/usr/bin/env bash
# The long run: every test SOAKCOUNT times under the race detector, then every package that
# has to do with a server on each of SOAKMAJORS ("" for none) without it, kills of server,
# daemon and zones for SOAKKILLS, interrupted snapshots whose pages are held against the
# server's, SOAKHISTORIES random histories of retention, the full sizes, then every fuzz
# target for SOAKFUZZ. SOAKSTEPS names those that run (tests majors kills interrupted
# histories scale fuzz). Writes docs/results/<date>-soak.md, or SOAKOUT, with what was run
# and how it ended, whatever the end.
set -uo pipefail
cd "$(dirname "$0")/.."
count=${SOAKCOUNT:-3}
fuzz=${SOAKFUZZ:-2m}
kills=${SOAKKILLS:-10m}
majors=${SOAKMAJORS-14 16 17 18}
histories=${SOAKHISTORIES:-10000}
steps=${SOAKSTEPS:-tests majors kills interrupted histories scale fuzz}
mkdir -p docs/results
out=${SOAKOUT:-docs/results/$(date -u +%Y-%m-%d)-soak.md}
log=$(mktemp -d "${TMPDIR:-/tmp}/holdfast-soak.XXXXXX")
dirty=$(git status --porcelain --untracked-files=no | wc -l)

step() { # name, command…: runs it, and adds a line to the report
  local name=$1 began=$SECONDS outcome=passed
  shift
  "$@" >"$log/$name.log" 2>&1 || outcome=FAILED
  echo "| $name | \`$*\` | $((SECONDS - began)) s | $outcome |" >>"$out"
  echo "$name: $outcome"
  [ $outcome = passed ] || { worst=1; { echo; grep -hE '^(--- FAIL|FAIL|panic:|FAILED|WARNING: DATA RACE)|HOLDFAST_SEED=' "$log/$name.log" | head -50 | sed 's/^/    /'; echo; } >>"$log/faults"; }
}

worst=0
{
  echo "# Soak, $(date -u +%Y-%m-%dT%H:%MZ)"
  echo
  echo "- commit $(git rev-parse HEAD), $dirty files changed since"
  echo "- $(go version), $(nproc) processors, $(uname -sr)"
  for p in /usr/lib/postgresql/*/bin/postgres .tools/pg/*/bin/postgres; do [ -x "$p" ] && echo "- $("$p" --version)"; done
  echo "- age $(age --version 2>/dev/null || echo 'is not installed'), $(zstd --version 2>/dev/null | grep -oE 'v[0-9.]+' | head -1 | sed 's/^/zstd /')"
  echo
  echo "| step | command | took | outcome |"
  echo "|---|---|---|---|"
} >"$out"
runs() { case " $steps " in *" $1 "*) ;; *) echo "| $1 | | | left out of this run |" >>"$out"; return 1 ;; esac; }
runs tests && step tests go test -race -p 2 -count="$count" -timeout 120m ./...
runs majors && for major in $majors; do
  step "PostgreSQL-$major" env HOLDFAST_PG_MAJOR="$major" go test -p 2 -count=1 -timeout 120m ./snapshot ./restore ./retention ./drills ./cmd/holdfast ./internal/postgres/... ./internal/tenancy/...
done
runs kills && step kills env HOLDFAST_SOAK="$kills" go test -run TestSoak -v -count=1 -timeout 120m ./cmd/holdfast
runs interrupted && step interrupted env HOLDFAST_ROUNDS=40 go test -run TestNoPageOfASnapshotIsOlder -v -count=1 -timeout 120m ./snapshot
runs histories && step histories env HOLDFAST_HISTORIES="$histories" go test -run RandomHistories -v -count=1 -timeout 120m ./retention
runs scale && step scale env HOLDFAST_SCALE=full go test -run 'TestT12AndT20|TestEachSource' -v -count=1 -timeout 180m ./cmd/holdfast ./snapshot
runs fuzz && step fuzz bash bench/fuzz.sh "$fuzz"
if [ -s "$log/faults" ]; then
  { echo; echo "What failed:"; cat "$log/faults"; } >>"$out"
fi
{ echo; echo "Not part of it: hours under load; the kills took $kills. Sparse files stand for relations of 64 GB, 300,000 of one page for a million."; } >>"$out"
echo "written: $out; logs: $log"
exit $worst
