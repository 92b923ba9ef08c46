"""Runs every check of `make test`, the later ones too when an earlier one fails, and sums up.

Usage: check.py [STAGE ...], where a stage is one of the names below; none means all.
"""

import subprocess
import sys
import time

STAGES = {
    "lint": "ruff check .",
    "format": "ruff format --check .",
    "types": "mypy --strict gradclip",
    # Triton is not in this environment (tools/environment.sh says why), and its kernels have no examples.
    "doctest": "pytest -q --doctest-modules gradclip --ignore=gradclip/backends/triton_kernels.py",
    "tests": "pytest -q -n 2 tests",
    # One worker takes one notebook from its first cell to its last: its cells share a kernel.
    "notebooks": "pytest -q --nbval --nbval-current-env --nbval-cell-timeout=120 -n 2 --dist loadscope book",
}


def main(names: list[str]) -> int:
    results = []
    for name in names or STAGES:
        print(f"\n── {name}: {STAGES[name]}", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", *STAGES[name].split()]).returncode
        results.append((name, code == 0, time.perf_counter() - start))
    print("\n── summary")
    for name, passed, seconds in results:
        print(f"{name:10} {'passed' if passed else 'FAILED'} {seconds:7.1f} s")
    failed = sum(not passed for _, passed, _ in results)
    print(f"stages: {len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
