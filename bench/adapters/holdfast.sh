# Holdfast as its user runs it: a configuration, keys, a daemon that streams the WAL, and commands to the daemon.
# HOLDFAST is the binary; HOLDFAST_ZONES how many zones there are (1: one repository like everybody's), HOLDFAST_LEVEL
# the configuration's level (left out: its default).

available() { [ -n "${HOLDFAST:-}" ] && [ -x "$HOLDFAST" ]; }
version() { echo "$HOLDFAST version | sed 's/^holdfast //'"; }
hf() { echo "$HOLDFAST --config $BENCH_DIR/holdfast.yaml"; }

zone() { # by name
  if [ "$BENCH_REPO" = s3 ]; then
    echo "    - {name: $1, s3: {endpoint: \"$S3_URL\", path_style: true, ca: {file: $S3_CA}, bucket: $S3_BUCKET, prefix: $S3_PREFIX/$1, region: $S3_REGION, credentials: {file: $BENCH_DIR/s3}}}"
  else
    mkdir -p "$BENCH_REPO_PATH/$1"
    echo "    - {name: $1, directory: $BENCH_REPO_PATH/$1}"
  fi
}

config() { # data recipient, signing key
  cat <<EOF
format: 1
node: {name: db1, state: $BENCH_DIR/state, socket: $BENCH_DIR/sock, limits: {workers: $BENCH_JOBS, memory: 128MiB}}
repository:
  zones:
$(for n in $(seq "${HOLDFAST_ZONES:-1}"); do zone "z$n"; done)
  write_quorum: $(( (${HOLDFAST_ZONES:-1} + 1) / 2 ))
  accept_stop_on_zone_loss: true
  recipients: ["$1"]
  index_identity: {file: $BENCH_DIR/index}
  signing_key: {file: $BENCH_DIR/db1}
  trusted_signers:
    - {key: "$2", may: [snapshot, wal, tombstone, ledger]}
clusters:
  - name: bench
    connection: "host=$PGHOST port=$PGPORT dbname=postgres user=$PGUSER"
$([ -n "${BENCH_FOR:-}" ] || echo "    data_directory: $BENCH_SRC") # what is pushed comes from a directory beside the server's
    snapshots: {schedule: "@yearly"${HOLDFAST_LEVEL:+, level: $HOLDFAST_LEVEL}}
    wal: $(wal)
EOF
}

setup() {
  local data db1
  data=$("$HOLDFAST" keys new data --out "$BENCH_DIR/data")
  "$HOLDFAST" keys new index --out "$BENCH_DIR/index" >/dev/null
  db1=$("$HOLDFAST" keys new signing --name db1 --out "$BENCH_DIR/db1")
  [ "$BENCH_REPO" != s3 ] || (umask 077 && printf 'access_key_id = %s\nsecret_access_key = %s\n' "$S3_KEY" "$S3_SECRET" > "$BENCH_DIR/s3")
  config "$data" "$db1" > "$BENCH_DIR/holdfast.yaml"
  # A slot begins at the last checkpoint: what others' steps wrote since then is not this repository's to archive.
  # The data key stays here only for the bench; a database host has none, and check says so.
  echo "psql -Xqc checkpoint; $(hf) init; rc=\$?; [ -f $BENCH_REPO_PATH/z1/holdfast.json ] || exit \$rc; setsid $(hf) daemon > $BENCH_DIR/daemon.log 2>&1 < /dev/null & echo \$! > $BENCH_DIR/pid; for i in \$(seq 300); do [ -S $BENCH_DIR/sock ] && exit 0; sleep 0.1; done; tail $BENCH_DIR/daemon.log; exit 1"
}
wal() {
  case "${BENCH_FOR:-}" in
    "") echo "{slot: $(slot)}" ;;
    *async) echo "{mode: push}" ;;
    *) echo "{mode: push, look_ahead: 0}" ;;
  esac
}
slot() { basename "$BENCH_DIR" | tr - _; }
# The slot follows what the zones hold. A switch first: a segment that is full is stored once more as a whole, in place
# of its slices, and what the load wrote is not the next snapshot's.
caught_up() { echo "psql -XAtqc 'select pg_switch_wal()' >/dev/null; for i in \$(seq 600); do [ \"\$(psql -XAtqc \"select restart_lsn >= pg_current_wal_flush_lsn() from pg_replication_slots where slot_name = '$(slot)'\")\" = t ] && exit 0; sleep 0.1; done; echo 'the WAL of the load is not archived after a minute'; exit 1"; }
daemon() { cat "$BENCH_DIR/pid"; }
backup_full() { echo "$(hf) --quiet snapshot take bench"; }
backup_incr() { backup_full; } # every snapshot but the first is incremental
into() { echo "--identity $BENCH_DIR/data --binaries $PGBIN"; }
restore_full() { echo "$(hf) --quiet restore run bench --to $1 --fetch-only $(into)"; }
restore_delta() { echo "$(restore_full "$1") --delta"; }
restore_replay() { echo "$(hf) --quiet restore resume $1 $(into)"; }
# What PostgreSQL starts for each segment is the small program, where it lies beside the other.
small() { [ -x "$HOLDFAST-wal" ] && echo "$HOLDFAST-wal --config $BENCH_DIR/holdfast.yaml" || hf; }
wal_push() { echo "$(small) wal push $1"; }
wal_push_async() { wal_push "$1"; }
wal_get() { echo "$(small) wal fetch --identity $BENCH_DIR/data --prefetch 0 $1 $2"; }
wal_get_async() { echo "$(small) wal fetch --identity $BENCH_DIR/data $1 $2"; }
sync_standby() { echo holdfast; }
teardown() { echo "kill \$(cat $BENCH_DIR/pid) && for i in \$(seq 100); do kill -0 \$(cat $BENCH_DIR/pid) 2>/dev/null || break; sleep 0.1; done; psql -Xqc \"select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '$(slot)'\""; }
