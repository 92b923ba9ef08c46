"""tools/environment.sh: what it makes, and the one line it gives where it cannot; Python, pip and uv are stand-ins."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "environment.sh"
PYTHON = """#!/bin/sh
case "$*" in
    *sys.version_info*) exit "${UNSUPPORTED:-0}" ;;
    *distributions*) [ ! -e "$(dirname "$0")/../package-is-broken" ] ;;
    *"-m venv"*) shift 3 && rm -rf "$1" && mkdir -p "$1/bin" && cp "$0" "$1/bin/python" ;;
    *"-m pip install"*) eval "$INSTALL" ;;
    --version) echo Python 3.12.1 ;;
esac
"""
UV = """#!/bin/sh
[ "$1" = --version ] && exit
for last; do :; done
mkdir -p "$last/bin"
sed s/UNSUPPORTED/NEVER/ "$STAND_IN" >"$last/bin/python"
chmod +x "$last/bin/python"
"""


@pytest.fixture
def make_environment(tmp_path):
    """Runs the script with a PATH that has the stand-in for python3 and the few tools that a script needs."""
    tools = tmp_path / "path"
    tools.mkdir()
    for name in ("sh", "cp", "dd", "dirname", "grep", "mkdir", "rm", "sed", "tail", "head", "tee", "chmod"):
        (tools / name).symlink_to(shutil.which(name))
    for name, code in {"python3": PYTHON, "uv": UV}.items():
        (tools / name).write_text(code)
        (tools / name).chmod(0o755)

    def run(install="true", uv=False, venv="venv", **more):
        if not uv:
            (tools / "uv").unlink(missing_ok=True)
        environment = {"PATH": str(tools), "INSTALL": install, "STAND_IN": str(tools / "python3"), **more}
        command = ["sh", str(SCRIPT), str(tmp_path / venv), "", more.get("PYTHON", "")]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def error(run):
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_an_environment_is_made_once(make_environment):
    first, second = make_environment(), make_environment()
    assert (first.returncode, first.stderr, second.returncode, second.stderr) == (0, "", 0, "")
    assert "Making " in first.stdout
    assert "Making " not in second.stdout


@pytest.mark.parametrize("part", ["bin/python", "bin"])
def test_without_its_python_it_is_made_anew(make_environment, tmp_path, part):
    make_environment()
    gone = tmp_path / "venv" / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    again = make_environment()
    assert again.returncode == 0
    assert "Making " in again.stdout


def test_with_half_of_its_packages_it_is_made_anew(make_environment, tmp_path):
    make_environment()
    (tmp_path / "venv" / "package-is-broken").touch()
    again = make_environment()
    assert again.returncode == 0
    assert "Making " in again.stdout


def test_after_a_killed_installation_it_is_made_anew(make_environment):
    killed = make_environment(install="kill -9 $$; sleep 9")
    assert killed.returncode != 0
    group = make_environment(install="kill -9 $PPID; kill -9 $$")  # the script's own shell, too
    assert group.returncode != 0
    again = make_environment()
    assert again.returncode == 0
    assert "Making " in again.stdout


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "is full: free"),
        ("ERROR: NameResolutionError", "the package index cannot be reached"),
        ("ERROR: ResolutionImpossible", "pip: ResolutionImpossible"),
    ],
)
def test_what_pip_says_is_told_in_a_line(make_environment, said, told):
    assert told in error(make_environment(install=f"echo '{said}'; exit 1"))


def test_a_failure_that_changed_nothing_costs_no_new_environment(make_environment):
    make_environment(install="echo 'ERROR: NameResolutionError'; exit 1")
    assert "Making " not in make_environment().stdout


def test_no_python_and_no_uv(make_environment):
    line = error(make_environment(UNSUPPORTED="1"))
    assert "no Python 3.11, 3.12 or 3.13 found" in line
    assert "or uv, which fetches one" in line
    assert "PYTHON=python3 is not" in error(make_environment(UNSUPPORTED="1", PYTHON="python3"))


def test_uv_where_there_is_no_python(make_environment):
    run = make_environment(uv=True, UNSUPPORTED="1")
    assert (run.returncode, run.stderr) == (0, "")
    assert "a Python that uv finds or fetches" in run.stdout


def test_a_place_that_cannot_be_written_to(make_environment, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be made" in error(make_environment(venv="file/venv"))
