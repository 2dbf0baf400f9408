#!/usr/bin/env bash
# The whole story on real parts: a PostgreSQL under writes, three zones, the
# daemon, a zone lost and back, a table dropped and restored to the second
# before, a project deleted for good, a drill, and its record verified by a
# stranger. Leaves nothing behind, unless --keep.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
keep=; [ "${1:-}" = --keep ] && keep=1

work=$(mktemp -d /tmp/holdfast-demo.XXXXXX)
chmod 755 "$work"
mkdir -p "$work"/{bin,zones/{a,b,c},keys,db,drill,restores}
cp "$here/bin/holdfast" "$work/bin/holdfast"
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
[ -n "$bin" ] || bin=$(dirname "$(command -v postgres)")
export PATH="$work/bin:$bin:$PATH"
as() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
sql() { as psql -XqAt -v ON_ERROR_STOP=1 -h "$work/pg" -d "${DB:-cms}" "$@"; }
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
exec 3>&1
run() { printf '\033[2m$ holdfast %s\033[0m\n' "${*//$work/\$DEMO}" >&3; holdfast "$@"; }
seconds() { echo $(( $(date +%s) - began )); }
began=$(date +%s)

pids=()
cleanup() {
  code=$?
  trap - EXIT INT TERM
  if [ $code -ne 0 ]; then
    echo "the demo failed after $(seconds) s; the end of the daemon's log:" >&2
    tail -n 40 "$work/daemon.log" | cut -c1-600 >&2 2>/dev/null || true
  fi
  if [ -n "$keep" ] && [ $code -eq 0 ]; then
    cat <<EOF

left running in $work. Look further:
  export PATH=$work/bin:\$PATH HOLDFAST_CONFIG=$work/db.yaml
  holdfast status; holdfast snapshot list; holdfast ledger show
  holdfast --config $work/drill.yaml drill list
stop it: kill ${pids[*]}; $(declare -f as >/dev/null && [ "$(id -u)" = 0 ] && echo 'runuser -u postgres -- ')$bin/pg_ctl -D $work/pg/data stop; rm -rf $work
EOF
    exit 0
  fi
  for d in "$work"/restores/*/; do holdfast restore discard "${d%/}" >/dev/null 2>&1 || { as pg_ctl -D "${d%/}" -m immediate stop >/dev/null 2>&1 || true; }; done
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  for p in "${pids[@]}"; do wait "$p" 2>/dev/null || true; done
  [ -f "$work/pg/data/postmaster.pid" ] && as pg_ctl -D "$work/pg/data" -m immediate -s stop >/dev/null 2>&1 || true
  rm -rf "$work"
  exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say "a PostgreSQL with a small multi-tenant CMS, and somebody who writes all the time"
mkdir "$work/pg"; [ "$(id -u)" = 0 ] && chown postgres "$work/pg" "$work/restores"
as initdb -D "$work/pg/data" -k -U postgres -A trust >/dev/null
cat >>"$work/pg/data/postgresql.conf" <<EOF
listen_addresses = ''
unix_socket_directories = '$work/pg'
wal_level = replica
max_wal_senders = 6
logging_collector = off
EOF
as pg_ctl -D "$work/pg/data" -l "$work/pg/log" -w -s start
DB=postgres sql -U postgres -c "CREATE DATABASE cms"
sql -U postgres -v mb=6 -v projects=40 -f "$here/bench/cms.sql" >/dev/null
sql -U postgres -c "CREATE TABLE public.beat (id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())"
( while sleep 0.2; do sql -U postgres -c "INSERT INTO beat DEFAULT VALUES" >/dev/null 2>&1 || exit 0; done ) & pids+=($!)
sql -U postgres -F ' ' -c "SELECT count(*) || ' projects, ' || (SELECT count(*) FROM cms.record) || ' records, ' || pg_size_pretty(pg_database_size('cms')) FROM cms.project"

say "keys: the database host can seal and sign, and cannot open what it sealed"
data=$(run keys new data --out "$work/drill/data.key" --x25519)
run keys new index --out "$work/keys/index" --x25519 >/dev/null
db_key=$(run keys new signing --name db1 --out "$work/keys/db1")
drill_key=$(run keys new signing --name drill1 --out "$work/keys/drill1")
repository() {
  cat <<EOF
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
EOF
}
cat >"$work/db.yaml" <<EOF
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
EOF
cat >"$work/drill.yaml" <<EOF
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
      - {name: beats, database: cms, sql: "SELECT max(at) > now() - interval '1 hour' FROM beat", expect: "t"}
EOF
mkdir -p "$work/drill/rooms"; chmod 755 "$work/drill" "$work/drill/rooms"
export HOLDFAST_CONFIG="$work/db.yaml"

say "the repository, in three zones"
run init
say "the daemon: it streams the WAL from now on, and takes snapshots by schedule"
holdfast daemon >"$work/daemon.log" 2>&1 & daemon=$!; pids+=("$daemon")
for _ in $(seq 100); do [ -S "$work/db/holdfast.sock" ] && break; read -rt 0.1 <> <(:) || true; done
run snapshot take cms

say "a project is deleted: live at once, every restore from now on, and later every copy"
run project list cms | sed -n 1,4p
run project delete cms 7 --in-live --yes

say "a zone is lost: nothing stops"
mv "$work/zones/b" "$work/zones/b.lost"; mkdir "$work/zones/b"
run snapshot take cms
run status || true
rmdir "$work/zones/b"; mv "$work/zones/b.lost" "$work/zones/b"
echo "the zone is back"
for _ in $(seq 300); do
  [ "$(holdfast status --output json 2>/dev/null | grep -c '"behind_objects": 0')" = 3 ] && break
  read -rt 0.2 <> <(:) || true
done
run zone list

say "somebody drops a table"
before=$(sql -U postgres -c "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
records=$(sql -U postgres -c "SELECT count(*) FROM cms.record")
sql -U postgres -c "DROP TABLE cms.record CASCADE" 2>/dev/null
sql -U postgres -c "INSERT INTO beat DEFAULT VALUES"
echo "cms.record had $records rows at $before"
read -rt 2.5 <> <(:) || true
say "restored to just before, from another machine's point of view: the zones and a key"
export HOLDFAST_CONFIG="$work/drill.yaml"
run restore plan cms --time "$before" --identity "$work/drill/data.key"
run restore run cms --time "$before" --identity "$work/drill/data.key" --binaries "$bin" --to "$work/restores/before" --start
port=$(grep -oE '^port = .[0-9]+' "$work/restores/before/postgresql.auto.conf" | grep -oE '[0-9]+' | tail -1)
found=$(as psql -XqAt -h "$work/restores/before" -p "$port" -U postgres -d cms -c "SELECT count(*) FROM cms.record")
gone=$(as psql -XqAt -h "$work/restores/before" -p "$port" -U postgres -d cms -c "SELECT count(*) FROM cms.project WHERE id = 7")
echo "the restored copy has $found records, and $gone projects with id 7"
[ "$found" = "$records" ] && [ "$gone" = 0 ]
as pg_ctl -D "$work/restores/before" -m immediate -s stop

say "a drill: restore the oldest, in which the deleted project still is, into a closed room, and ask it everything"
run drill run weekly

say "a stranger verifies the log, with nothing but a copy of one zone and the public keys"
run ledger verify --directory "$work/zones/c" --key "$db_key" --key "$drill_key"
pack=$(ls "$work"/zones/c/clusters/cms/snapshots/*/packs/*.age | head -1)
echo "and the ordinary programs open a pack: $(age -d -i "$work/drill/data.key" "$pack" | zstd -dq | wc -c) bytes"
export HOLDFAST_CONFIG="$work/db.yaml"
say "how everything stands now"
run status || true
say "done in $(seconds) s"
