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

# An environment whose Python is gone, or files of whose packages are, is made anew: pip would take these for installed.
works() {
    supported "$venv/bin/python" && [ ! -e "$unfinished" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
        "$venv/bin/python" -c '
import sys
from importlib.metadata import distributions
files = (f for d in distributions(path=[p for p in sys.path if p.startswith(sys.prefix)]) for f in d.files or ())
sys.exit(not all(f.locate().exists() for f in files if f.suffix == ".py"))' 2>/dev/null
}

# A full disk stops every tool in its own words, or in none: ask the disk itself, with a file of 1 MB.
disk_is_full() {
    ! { dd if=/dev/zero of="$venv/.room" bs=1024 count=1024 && rm "$venv/.room"; } >/dev/null 2>&1 && rm -f "$venv/.room"
}

make_venv() {
    if [ "$python" = uv ]; then
        uv venv --quiet --clear --seed --python '>=3.11,<3.14' "$venv"
    else
        "$python" -m venv --clear "$venv"
    fi
}

unfinished=$venv/.pip-unfinished # there while pip runs: what it leaves when it is killed cannot be told from what is whole
if ! works; then
    if [ -n "$python" ]; then
        supported "$python" || fail "PYTHON=$python is not a Python 3.11, 3.12 or 3.13 that runs; TensorFlow has no release for later ones yet"
    else
        for python in python3.13 python3.12 python3.11 python3 python uv ''; do
            [ "$python" = uv ] && uv --version >/dev/null 2>&1 && break
            supported "$python" && break
        done
        [ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 found (TensorFlow has no release for later ones yet): install one, or uv, which fetches one; or name it with make PYTHON=/path/to/python"
    fi
    [ "$python" = uv ] || "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments: install its venv package (Debian and Ubuntu: apt install python3-venv)"
    mkdir -p "$venv" 2>/dev/null || fail "$venv cannot be made: is its place writable, and has the disk room?"
    echo "Making $venv with $([ "$python" = uv ] && echo "a Python that uv finds or fetches" || "$python" --version)"
    # Its log lies beside it, since --clear empties the folder.
    if ! make_venv >"$venv.log" 2>&1; then
        disk_is_full && fail "the disk that holds $venv is full: free about 8 GB, then run the same command again"
        fail "$python could not make $venv: $(grep . "$venv.log" | tail -n 1) (log: $venv.log)"
    fi
    rm -f "$venv.log"
fi

echo "Installing the packages into $venv; the first time takes some minutes"
log=$venv/install.log
succeeded=$venv/.pip-succeeded # a pipe hides pip's exit status
rm -f "$succeeded"
: 2>/dev/null >"$unfinished" || fail "$venv cannot be written to: is its disk full, or yours to write on?"
{
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
        ${constraints:+-c "$constraints"} -e '.[all]' 2>&1 && : >"$succeeded"
} | tee "$log" 2>/dev/null | grep --line-buffered -oE 'Downloading .*[(][0-9]{2,}[.][0-9] MB\)|Installing collected packages'
if [ -f "$succeeded" ]; then
    rm -f "$unfinished"
    exit 0
fi

# The message of a full disk may not have fitted on it.
if disk_is_full || grep -qE 'No space left on device|Errno 28' "$log"; then
    fail "the disk that holds $venv is full: free about 8 GB, then run the same command again"
fi
grep -q 'ERROR: ' "$log" && rm -f "$unfinished" # pip gave up by itself, before it changed anything
if grep -qE 'NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|SSLError|Connection (aborted|broken|refused|reset)' "$log"; then
    fail "the package index cannot be reached: check the network and pip's settings, then run the same command again (log: $log)"
fi
reason=$(sed -n 's/^ *ERROR: //p' "$log" | head -n 1)
fail "pip: ${reason:-failed} (log: $log)"
