#!/bin/sh
# Makes a virtual environment with this package and all its extras in it, or brings one up to date.
# Safe to run again after an interruption. Usage: environment.sh VENV [CONSTRAINTS [PYTHON]]
set -u
venv=$1 constraints=${2:-} python=${3:-}

fail() {
    echo "error: $*" >&2
    exit 1
}

# Asks instead of looking: a pyenv shim is there for versions that do not run.
supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

if ! { supported "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    if [ -n "$python" ]; then
        supported "$python" || fail "PYTHON=$python is not a Python 3.11, 3.12 or 3.13 that runs"
    else
        for python in python3.13 python3.12 python3.11 python3 python ''; do
            supported "$python" && break
        done
        [ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 found: install one, or name it with make PYTHON=/path/to/python"
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments: install its venv package (Debian and Ubuntu: apt install python3-venv)"
    echo "Making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || fail "$python could not make $venv: see the lines above"
fi

echo "Installing the packages into $venv; the first time takes some minutes"
log=$venv/install.log
succeeded=$venv/.pip-succeeded # a pipe hides pip's exit status
rm -f "$succeeded"
{
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
        ${constraints:+-c "$constraints"} -e '.[all]' 2>&1 && : >"$succeeded"
} | tee "$log" | grep --line-buffered -oE 'Downloading .*[(][0-9]{2,}[.][0-9] MB\)|Installing collected packages'
if [ -f "$succeeded" ] && [ "$(uname -s)" = Linux ] && [ ! -d "$venv/triton" ]; then
    # The tests run the CUDA kernels in Triton's interpreter. Triton and TensorFlow in one process crash, and PyTorch
    # imports Triton where it finds it: so it stays out of site-packages. It is the one of torch 2.13's CUDA builds.
    rm -rf "$venv/triton.new"
    if "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --quiet --no-deps \
        --target "$venv/triton.new" triton==3.7.1 >>"$log" 2>&1; then
        mv "$venv/triton.new" "$venv/triton"
    else
        echo "Triton could not be installed: without it, the tests of its kernels are skipped (log: $log)"
    fi
fi
[ -f "$succeeded" ] && exit 0

if grep -qE 'NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|SSLError|Connection (aborted|broken|refused|reset)' "$log"; then
    fail "the package index cannot be reached: check the network and pip's settings, then run the same command again (log: $log)"
fi
reason=$(sed -n 's/^ *ERROR: //p' "$log" | head -n 1)
fail "pip: ${reason:-failed} (log: $log)"
