"""Runs every check of `make test`, the later ones too when an earlier one fails, and sums up.

Usage: check.py [STAGE ...], where a stage is one of the names below; none means all but "core", a part of "tests".
"""

import os
import shutil
import subprocess
import sys
import time

STAGES = {
    "lint": "ruff check .",
    "format": "ruff format --check .",
    "types": "mypy --strict gradclip",
    # macOS has no Triton, and its kernels have no examples.
    "doctest": "pytest -q --doctest-modules gradclip --ignore=gradclip/backends/triton_kernels.py",
    # For daily work (`make check`): JAX compiles each case anew, which takes most of the time of the stage "tests".
    "core": "pytest -q -n 2 tests/test_contract.py tests/test_faults.py -k not(jax)",
    "tests": "pytest -q -n 2 tests --ignore=tests/site",
    # One worker takes one notebook from its first cell to its last: its cells share a kernel.
    "notebooks": "pytest -q --nbval --nbval-current-env --nbval-cell-timeout=120 -n 2 --dist loadscope book",
    "book": "make --no-print-directory book",
    "site": "pytest -q -n 2 --dist loadscope tests/site",
}


def chromium() -> str | None:
    """The browser for the stage "site": what CHROMIUM names, else one that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def main(names: list[str]) -> int:
    results = []
    for name in names or [stage for stage in STAGES if stage != "core"]:
        print(f"\n── {name}: {STAGES[name]}", flush=True)
        if name == "site" and not chromium():
            print("not run: there is no Chromium or Chrome; install one, or name it with CHROMIUM=/path/to/it")
            results.append((name, "not run", 0.0))
            continue
        start = time.perf_counter()
        command = STAGES[name].split()
        if command[0] != "make":
            command = [sys.executable, "-m", *command]
        code = subprocess.run(command).returncode
        results.append((name, "FAILED" if code else "passed", time.perf_counter() - start))
    print("\n── summary")
    for name, outcome, seconds in results:
        print(f"{name:10} {outcome} {seconds:7.1f} s")
    count = [sum(outcome == kind for _, outcome, _ in results) for kind in ("passed", "FAILED", "not run")]
    print(f"stages: {count[0]} passed, {count[1]} failed" + (f", {count[2]} not run" if count[2] else ""))
    return 1 if count[1] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
