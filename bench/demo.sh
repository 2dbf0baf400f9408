#!/usr/bin/env bash
# The whole story on real parts: a PostgreSQL under writes, three zones, the
# daemon, a project deleted for good, a zone lost and back, a table dropped and
# restored to the second before, a drill, and its record verified by a stranger.
# Leaves nothing behind and looks whether that is so, unless --keep.
#
# Needs bin/holdfast and bin/sqlrun (make demo builds them), and PostgreSQL's
# programs postgres, initdb and pg_ctl: from HOLDFAST_DEMO_PG=DIR when that is
# set, else where bench/pg.sh looks. Runs as root (PostgreSQL then runs as the
# user postgres) or as anybody else.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/bench/pg.sh"
keep=; [ "${1:-}" = --keep ] && keep=1
unset "${!PG@}" # what the caller's own PostgreSQL is called is none of the demo's business
began=$(date +%s)
die() { echo "demo: $*" >&2; exit 1; }
[ -x "$here/bin/holdfast" ] && [ -x "$here/bin/holdfast-wal" ] && [ -x "$here/bin/sqlrun" ] || die "bin/holdfast, bin/holdfast-wal and bin/sqlrun are not built: run it by \`make demo\`"
bin=$(pg_bin) || die "no PostgreSQL was found: \`make deps\` installs one, or name its programs' directory by HOLDFAST_DEMO_PG=DIR"
root=; [ "$(id -u)" = 0 ] && root=1
[ -z "$root" ] || id postgres >/dev/null 2>&1 || die "PostgreSQL refuses to run as root, and there is no user postgres: \`useradd --system postgres\`, or run this as an ordinary user"

work=$(mktemp -d /tmp/holdfast-demo.XXXXXX)
as() { if [ -n "$root" ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi; }
sql() { sqlrun -dsn "host=$work/pg user=postgres dbname=${DB:-cms}" "$@"; }
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
exec 3>&1
run() { printf '\033[2m$ holdfast %s\033[0m\n' "${*//$work/\$DEMO}" >&3; holdfast "$@"; }
seconds() { echo $(($(date +%s) - began)); }
# await SECONDS WHAT COMMAND...: until the command succeeds.
await() {
  local until=$(($(date +%s) + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$until" ] || die "waited in vain for $what"
    sleep 0.1
  done
}

# ---- ending: stop all that was started, remove all that was made, look

pids=()
stop_all() {
  local p f
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  for p in "${pids[@]}"; do
    for _ in $(seq 200); do kill -0 "$p" 2>/dev/null || continue 2; sleep 0.1; done
    kill -KILL "$p" 2>/dev/null || true
  done
  # The demo's own server, and any that an interrupted restore or drill left.
  while read -r f; do as pg_ctl -D "${f%/*}" -m immediate -w -s stop >/dev/null 2>&1 || true; done < <(find "$work" -name postmaster.pid 2>/dev/null)
}
# leftovers prints each process that runs in, from or upon the demo's directory.
leftovers() {
  local p arg
  for p in /proc/[0-9]*; do
    { while IFS= read -r -d '' arg; do [[ $arg = *"$work"* ]] && echo "process ${p##*/}: $arg"; done <"$p/cmdline"; } 2>/dev/null || true
  done
  ls -l /proc/[0-9]*/cwd /proc/[0-9]*/exe 2>/dev/null | grep -F -- "-> $work" || true
  [ ! -e "$work" ] || echo "$work"
}
ending() {
  code=$?
  trap - EXIT; trap '' INT TERM
  case $code in
    0) [ -z "$keep" ] || { leave_running; exit 0; } ;;
    130) echo; echo "interrupted after $(seconds) s; cleaning up" ;;
    *) echo "the demo failed after $(seconds) s; the end of the daemon's log:" >&2
       tail -n 40 "$work/daemon.log" 2>/dev/null | cut -c1-600 >&2 ;;
  esac
  stop_all
  rm -rf "$work"
  left=$(leftovers)
  if [ -n "$left" ]; then printf 'the demo left something behind:\n%s\n' "$left" >&2; exit 1; fi
  [ $code -ne 0 ] || say "done in $(seconds) s; no process and no file of it is left"
  exit $code
}
leave_running() {
  { declare -p work root bin pids; declare -f as stop_all; echo 'PATH=$bin:$PATH; stop_all; rm -rf "$work"'; } >"$work/stop"
  cat <<END

left running in $work. Look further:
  export PATH=$work/bin:\$PATH HOLDFAST_CONFIG=$work/db.yaml
  holdfast status; holdfast snapshot list; holdfast ledger show; holdfast purge show $purge
  holdfast --config $work/drill.yaml drill list
  sqlrun -dsn 'host=$work/pg user=postgres dbname=cms' -c 'SELECT max(at) FROM cms.visit'
Stop it, and remove it: bash $work/stop
END
}
trap ending EXIT
trap 'exit 130' INT TERM

chmod 755 "$work"
mkdir -p "$work"/{bin,pg,zones/{a,b,c},keys,db,drill/rooms,restores}
[ -z "$root" ] || chown postgres "$work/pg" "$work/restores"
cp "$here"/bin/{holdfast,holdfast-wal,sqlrun} "$work/bin/"
if ! as test -x "$bin/postgres"; then # a checkout where the user postgres may not look
  cp -a "${bin%/bin}" "$work/pgsql"; bin=$work/pgsql/bin
fi
export PATH="$work/bin:$bin:$PATH"

# ---- the story

say "a PostgreSQL with a small multi-tenant CMS, and visitors who make it write all the time"
as "$bin/postgres" --version
as "$bin/initdb" -D "$work/pg/data" -k -U postgres -A trust -E UTF8 --no-locale >/dev/null
as tee -a "$work/pg/data/postgresql.conf" >/dev/null <<EOF2
listen_addresses = ''
unix_socket_directories = '$work/pg'
wal_level = replica
max_wal_senders = 6
logging_collector = off
EOF2
as "$bin/pg_ctl" -D "$work/pg/data" -l "$work/pg/log" -w -s start
DB=postgres sql -c "CREATE DATABASE cms"
sql -f "$here/bench/demo.sql"
sql -every 200ms -c "INSERT INTO cms.visit (project_id) VALUES (1)" 2>"$work/visitors.log" & pids+=($!)
sql -c "SELECT count(*) || ' projects, ' || (SELECT count(*) FROM cms.record) || ' records, ' || pg_size_pretty(pg_database_size('cms')) FROM cms.project"

say "keys: the database host can seal and sign, and cannot open what it sealed"
data=$(run keys new data --out "$work/drill/data.key" --x25519)
run keys new index --out "$work/keys/index" --x25519 >/dev/null
db_key=$(run keys new signing --name db1 --out "$work/keys/db1")
drill_key=$(run keys new signing --name drill1 --out "$work/keys/drill1")
repository() {
  cat <<EOF2
repository:
  zones:
    - {name: a, jurisdiction: EU, directory: $work/zones/a}
    - {name: b, jurisdiction: EU, directory: $work/zones/b}
    - {name: c, jurisdiction: EU, directory: $work/zones/c}
  write_quorum: 2
  recipients: ["$data"]
  index_identity: {file: $work/keys/index}
  signing_key: {file: $work/keys/$1}
  trusted_signers:
    - {key: "$db_key", may: [snapshot, wal, tombstone, ledger]}
    - {key: "$drill_key", may: [ledger]}
EOF2
}
cat >"$work/db.yaml" <<EOF2
format: 1
node: {name: db1, state: $work/db/state, socket: $work/db/holdfast.sock}
$(repository db1)
clusters:
  - name: cms
    connection: "host=$work/pg dbname=postgres user=postgres"
    data_directory: $work/pg/data
    snapshots: {schedule: "*/2 * * * *", level: fastest}
    wal: {mode: stream, max_lag: 1s}
    retention: {window: 7d, daily: 7, keep_at_least: 7d, keep_at_most: 30d}
    objectives: {rpo: 30s, rto: 5m}
    projects:
      layout: rows
      registry: "SELECT id::text, name FROM cms.project"
      rows: {database: cms, root: cms.project, key: id}
EOF2
cat >"$work/drill.yaml" <<EOF2
format: 1
node: {name: drill1, state: $work/drill/state, socket: $work/drill/holdfast.sock}
$(repository drill1)
clusters:
  - name: cms
    objectives: {rpo: 30s, rto: 5m}
environments:
  - {name: standby, directory: $work/drill/rooms, binaries: "$bin", identity: {file: $work/drill/data.key}}
drills:
  - name: weekly
    cluster: cms
    environment: standby
    schedule: "0 4 * * 1"
    select: oldest
    checks:
      - {name: records, database: cms, sql: "SELECT count(*) > 0 FROM cms.record", expect: "t"}
      - {name: visits, database: cms, sql: "SELECT max(at) > now() - interval '1 hour' FROM cms.visit", expect: "t"}
EOF2
chmod 755 "$work/drill" "$work/drill/rooms"
export HOLDFAST_CONFIG="$work/db.yaml"

say "the repository, in three zones"
run init
say "the daemon: it streams the WAL from now on, and takes snapshots by schedule"
holdfast daemon >"$work/daemon.log" 2>&1 & pids+=($!)
await 20 "the daemon's socket" test -S "$work/db/holdfast.sock"
run snapshot take cms

say "a project is deleted: live at once, from every restore from now on, and later from every copy"
run project list cms | sed -n 1,4p
run project delete cms 7 --in-live --yes | tee "$work/deleted"
purge=$(sed -n 's/^tombstone \([^:]*\):.*/\1/p' "$work/deleted")
run purge show "$purge"

say "a zone is lost: nothing stops, and somebody is told"
mv "$work/zones/b" "$work/zones/b.lost"; mkdir "$work/zones/b"
run snapshot take cms
incident() { holdfast incident list | grep -F zone-down/b; }
no_incident() { ! incident; }
await 30 "the incident about zone b" incident
run incident show zone-down/b
run status || echo "(exit status $?: something needs attention)"
rmdir "$work/zones/b"; mv "$work/zones/b.lost" "$work/zones/b"
echo "the zone is back, and gets what it missed"
level() { [ "$(holdfast status --output json | grep -c '"behind_objects": 0')" = 3 ]; }
await 60 "zone b to catch up" level
await 30 "the incident's end" no_incident
run incident list --all
run zone list

say "somebody drops a table"
before=$(sql -c "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
records=$(sql -c "SELECT count(*) FROM cms.record")
sql -c "DROP TABLE cms.record CASCADE"
echo "cms.record had $records rows at $before"
sleep 2.5 # the archive is a second or two behind

say "restored to just before, from another machine's point of view: the zones and a key"
export HOLDFAST_CONFIG="$work/drill.yaml"
run restore plan cms --time "$before" --identity "$work/drill/data.key"
run restore run cms --time "$before" --identity "$work/drill/data.key" --binaries "$bin" --to "$work/restores/before" --start
port=$(as grep -oE '^port = .[0-9]+' "$work/restores/before/postgresql.auto.conf" | grep -oE '[0-9]+' | tail -1)
restored() { sqlrun -dsn "host=$work/restores/before port=$port user=postgres dbname=cms" "$@"; }
found=$(restored -c "SELECT count(*) FROM cms.record")
gone=$(restored -c "SELECT count(*) FROM cms.project WHERE id = 7")
echo "the restored copy has $found records, and $gone projects with id 7"
[ "$found" = "$records" ] && [ "$gone" = 0 ] || die "it should have $records, and 0"
as "$bin/pg_ctl" -D "$work/restores/before" -m immediate -s stop

say "a drill: restore the oldest, in which the deleted project still is, into a closed room, and ask it everything"
run drill run weekly | tee "$work/drilled"
if grep -q pass_with_gaps <(tr 'A-Z ' 'a-z_' <"$work/drilled"); then
  echo "\"With gaps\": the programs in ${bin/#$work/\$DEMO} are the server's alone. What pg_amcheck and pg_checksums"
  echo "would have been asked was not asked, and the record says so, signed. With all of PostgreSQL's programs it passes whole."
fi

say "a stranger verifies the log, with nothing but a copy of one zone and the public keys"
run ledger verify --directory "$work/zones/c" --key "$db_key" --key "$drill_key"

say "the auditor's copy: what was due, what came of it, and a file that proves it offline"
run drill report
run evidence export --out "$work/evidence.tar" --from "$(date -u -d '1 hour ago' +%FT%TZ)" >/dev/null
if command -v python3 >/dev/null; then
  tar -xOf "$work/evidence.tar" verify.py >"$work/verify.py"
  echo "\$ python3 verify.py evidence.tar --key $db_key --key $drill_key"
  python3 -I "$work/verify.py" "$work/evidence.tar" --key "$db_key" --key "$drill_key"
else
  run evidence verify "$work/evidence.tar" --key "$db_key" --key "$drill_key"
fi
if command -v age >/dev/null && command -v zstd >/dev/null; then
  pack=$(ls "$work"/zones/c/clusters/cms/snapshots/*/packs/*.age | head -1)
  echo "and the ordinary programs open a pack: age -d | zstd -d gives $(age -d -i "$work/drill/data.key" "$pack" | zstd -dq | wc -c) bytes"
else
  echo "left out: opening a pack by the ordinary programs, age -d | zstd -d, because age and zstd are not both installed here"
fi

export HOLDFAST_CONFIG="$work/db.yaml"
say "how everything stands now"
run purge show "$purge"
run status || echo "(exit status $?: something needs attention)"
[ -z "$keep" ] || say "done in $(seconds) s"
