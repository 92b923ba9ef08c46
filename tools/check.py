"""Runs every check of `make test`, the later ones too when an earlier one fails, and sums up.

Stages that keep one core busy run first, two at a time, and print what they found when they end, each in one piece.

Usage: check.py [STAGE ...], where a stage is one of the names below; none means all but "core", a part of "tests".
"""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import time

# The longest comes first, so that the others fit beside it.
ONE_CORE = {
    "book": "make --no-print-directory book",
    "lint": "ruff check .",
    "format": "ruff format --check .",
    "types": "mypy --strict gradclip",
    # macOS has no Triton, and its kernels have no examples.
    "doctest": "pytest -q --doctest-modules gradclip --ignore=gradclip/backends/triton_kernels.py",
}
TWO_CORES = {
    # For daily work (`make check`): JAX and TensorFlow compile case by case, most of the time of the stage "tests".
    "core": "pytest -q -n 2 tests/test_contract.py tests/test_faults.py -k not(jax)and(not(tensorflow))",
    "tests": "pytest -q -n 2 --dist worksteal tests --ignore=tests/site",
    # One worker takes one notebook from its first cell to its last: its cells share a kernel. conftest.py orders them.
    "notebooks": "pytest -q --nbval --nbval-current-env --nbval-cell-timeout=120"
    " -n 2 --dist loadscope --no-loadscope-reorder book",
    "site": "pytest -q -n 2 --dist loadscope tests/site",
}
STAGES = ONE_CORE | TWO_CORES


def chromium() -> str | None:
    """The browser for the stage "site": what CHROMIUM names, else one that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def run(name: str) -> tuple[str, str, float]:
    """Runs a stage and returns its name, how it ended, and the seconds it took."""
    title = f"\n── {name}: {STAGES[name]}"
    if name == "site" and not chromium():
        print(title)
        print("not run: there is no Chromium or Chrome; install one, or name it with CHROMIUM=/path/to/it")
        return name, "not run", 0.0
    command = STAGES[name].split()
    if command[0] != "make":
        command = [sys.executable, "-m", *command]
    start = time.perf_counter()
    if name in TWO_CORES:
        print(title, flush=True)
        code = subprocess.run(command).returncode
    else:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        print(title, done.stdout, sep="\n", end="", flush=True)
        code = done.returncode
    return name, "FAILED" if code else "passed", time.perf_counter() - start


def main(names: list[str]) -> int:
    names = names or [stage for stage in STAGES if stage != "core"]
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(run, [name for name in ONE_CORE if name in names]))
    results += [run(name) for name in names if name not in ONE_CORE]
    print("\n── summary")
    for name, outcome, seconds in results:
        print(f"{name:10} {outcome} {seconds:7.1f} s")
    count = [sum(outcome == kind for _, outcome, _ in results) for kind in ("passed", "FAILED", "not run")]
    print(f"stages: {count[0]} passed, {count[1]} failed" + (f", {count[2]} not run" if count[2] else ""))
    return 1 if count[1] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
