#!/usr/bin/env bash
# Fuzzes every fuzz target of the tree, one after the other, for the time given
# (default 30s each). A target that fails is named at the end; its input stays in
# the package's testdata/fuzz, to be committed with the fix.
set -euo pipefail
cd "$(dirname "$0")/.."
each=${1:-30s}
workers=${FUZZWORKERS:-2}
failed=()
out=$(mktemp)
trap 'rm -f "$out"' EXIT
count=0
while IFS=: read -r file target; do
  count=$((count + 1))
  pkg=./$(dirname "$file")
  echo "== $target in $pkg for $each"
  # Minimising is bounded by executions: by time, it can outlast the fuzzing.
  if go test -run '^$' -fuzz "^$target\$" -fuzztime "$each" -fuzzminimizetime=20x -parallel "$workers" -timeout 60m "$pkg" 2>&1 | tee "$out"; then
    continue
  fi
  # A slow target can be cut off by -fuzztime itself, which go test calls a
  # failure: then there is no failing input, and its seeds must pass.
  if grep -q '^ *context deadline exceeded$' "$out" && ! grep -q 'Failing input written' "$out" && go test -run "^$target\$" "$pkg"; then
    echo "   cut off by its time, nothing found"
    continue
  fi
  failed+=("$pkg $target")
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -HoE '^func Fuzz[A-Za-z0-9_]+' | sed 's/:func /:/' | sort)
if [ $count -eq 0 ]; then
  echo "no fuzz target found: looked in the wrong place" >&2
  exit 1
fi
if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "$count fuzz targets, nothing found"
