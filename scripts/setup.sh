# shellcheck shell=bash
# Make the checkout's virtual environment, and remake it when pyproject.toml or constraints.txt change.
# The other scripts source this file; it sets ROOT and VENV. Needs Python 3.11 or newer with venv and pip.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${RESP_TUNE_VENV:-$ROOT/.venv}

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: $python is not Python 3.11 or newer: install one, or name it, e.g. PYTHON=python3.12" >&2
  exit 2
fi

stamp=$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum)
if [ "$(cat "$VENV/.made_from" 2>/dev/null || true)" != "$stamp" ]; then
  echo "setting up $VENV (once; torch alone needs several GB if it comes with CUDA)" >&2
  # Test pip, not only python: without Debian's python3-venv, venv leaves an environment without pip.
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && ! "$python" -m venv --clear "$VENV"; then
    "$python" -m venv --clear --without-pip "$VENV"
    "$python" -m pip --python "$VENV/bin/python" install --quiet pip
  fi
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    --constraint "$ROOT/constraints.txt" --editable "${ROOT}[dev]" >&2
  # pip would compile on one core, also the libraries' own tests. A file in the syntax of a newer
  # Python does not compile, which compileall reports by its exit status.
  "$VENV/bin/python" -m compileall -qq -j 0 -x '/(tests?|testing)/' "$VENV/lib" || true
  echo "$stamp" > "$VENV/.made_from"
  echo "set up in $SECONDS s" >&2
fi
