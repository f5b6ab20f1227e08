#!/usr/bin/env bash
# Make sure that tools from Debian packages are there: "command:package", or "python3-venv".
# As root on Debian a missing one is installed; anywhere else it is an error that names the package.
set -euo pipefail

has() {
  case "$1" in
    python3-venv) "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null ;;
    *) command -v "${1%%:*}" >/dev/null 2>&1 ;;
  esac
}

missing=()
for want in "$@"; do
  has "$want" || missing+=("${want#*:}")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "installing Debian packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  # Only the programs are wanted, not the services that come with some of them.
  RUNLEVEL=1 apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "missing Debian packages: ${missing[*]} (apt-get install ${missing[*]})" >&2
  exit 1
fi
