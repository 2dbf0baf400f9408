#!/usr/bin/env bash
# Installs what tests and the demo need and the machine lacks: PostgreSQL with
# its client programs, age and zstd, from Debian's packages.
set -euo pipefail
missing=()
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null 2>&1 || missing+=(postgresql)
command -v age >/dev/null || missing+=(age)
command -v zstd >/dev/null || missing+=(zstd)
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "missing: ${missing[*]}. Install them with your system's packages (Debian: sudo apt-get install ${missing[*]}), then run this again." >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# The packages would start a server of their own, which nobody asked for.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.holdfast && chmod +x /usr/sbin/policy-rc.d.holdfast
if [ ! -e /usr/sbin/policy-rc.d ]; then
  mv /usr/sbin/policy-rc.d.holdfast /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
else
  rm -f /usr/sbin/policy-rc.d.holdfast
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
