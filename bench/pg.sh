# Sourced: where PostgreSQL's server programs are, for the demo and what installs
# for it. HOLDFAST_DEMO_PG=DIR names their directory outright, and then nothing
# else is looked at; without it they are looked for in Debian's place (the newest
# major), then in .tools/pg (what install.sh brought), then on PATH.

# pg_bin prints the directory, or fails.
pg_bin() {
  local root dir
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  if [ -n "${HOLDFAST_DEMO_PG:-}" ]; then
    pg_complete "$HOLDFAST_DEMO_PG" && (cd "$HOLDFAST_DEMO_PG" && pwd) && return
    echo "HOLDFAST_DEMO_PG=$HOLDFAST_DEMO_PG: the programs postgres, initdb and pg_ctl are not there" >&2
    return 1
  fi
  while read -r dir; do
    pg_complete "$dir" && echo "$dir" && return
  done < <(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV; ls -d "$root"/.tools/pg/*/bin 2>/dev/null | sort -rV)
  dir=$(dirname "$(command -v postgres || echo /nowhere/postgres)")
  pg_complete "$dir" && echo "$dir"
}

pg_complete() { [ -x "$1/postgres" ] && [ -x "$1/initdb" ] && [ -x "$1/pg_ctl" ]; }
