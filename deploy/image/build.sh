#!/bin/sh
# Install the exporter and what it imports, and nothing else, into PREFIX: a virtual environment without pip.
#
#   build.sh SOURCE PREFIX [node]
#
# SOURCE is the repository's root, PREFIX the final path: it is written into the scripts' first lines.
# "node" adds what maps GPUs to pods (gRPC). PYTHON is the interpreter; it must be the one that runs the
# exporter later. The Dockerfile runs this script, and so does tests/deploy/test_image.py outside of Docker.
# pip's own settings (PIP_INDEX_URL, PIP_CERT, /etc/pip.conf) say where the packages come from.
set -eu

if [ "$#" -lt 2 ] || [ "$#" -gt 3 ] || [ "${3:-node}" != node ]; then
  echo "usage: build.sh SOURCE PREFIX [node]" >&2
  exit 2
fi
source=$1
prefix=$2
mode=${3:-sidecar}
python=${PYTHON:-python3}
here=$(dirname "$0")

if [ -e "$prefix" ]; then
  echo "build.sh: $prefix is there already; what it holds would end up in the image" >&2
  exit 1
fi

# Two builds of one tree give one result: nothing below depends on the clock or on the hash seed.
export PYTHONHASHSEED=0 SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1580601600}"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
umask 022

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The builder, apart from the result. pip comes with the interpreter.
"$python" -m venv "$work/tools"
pip="$work/tools/bin/pip --quiet"
$pip install --require-hashes --only-binary :all: -r "$source/requirements/build.txt"
$pip wheel --no-deps --no-build-isolation --wheel-dir "$work/wheel" "$source"

# Wheels only: an sdist would run its setup code here.
set -- -r "$source/requirements/runtime.txt"
[ "$mode" = sidecar ] || set -- "$@" -r "$source/requirements/kubelet.txt"
"$python" -m venv --without-pip --symlinks "$prefix"
pip="$pip --python $prefix/bin/python"
$pip install --no-compile --require-hashes --only-binary :all: "$@"
$pip install --no-compile --no-deps --no-index "$work"/wheel/headroom_exporter-*.whl
$pip check

"$prefix/bin/python" "$here/trim.py" "$prefix"
cp "$here/healthcheck.py" "$prefix/bin/healthcheck"
chmod 755 "$prefix/bin/healthcheck"
# Without them every start compiles anew, at 4 MiB more resident memory. A read-only tree has no use for a
# check whether the source has changed.
"$prefix/bin/python" -m compileall -q -f --invalidation-mode unchecked-hash "$prefix/lib"
