"""Executes the book's notebooks in place, so that a diff shows what changed and nothing else.

Usage: notebooks.py [NOTEBOOK ...]; none means every notebook of the book.
"""

import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from benchmarks.record import machine

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
TIMES = BOOK / "running_times.json"

# The patch version of whoever ran the notebook last is left out.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
# What the book and the tests read; the rest (timings, folding, scrolling) changes with who looked.
KEPT = {"myst", "mystnb", "tags", "nbval_reason", "tolerance"}
# A frame of a traceback that lies outside the notebook: it tells where this machine keeps its files.
IN_A_FILE = re.compile(r"(\x1b\[[\d;]*m)*File ")


def all_notebooks() -> list[Path]:
    return sorted(p for p in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def set_kernel_environment() -> None:
    """Sets what a kernel inherits, the same for recording outputs and for comparing them."""
    # TensorFlow writes about its build before any Python code could ask it not to.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # A warning from gradclip, or from a cell itself, is an error. The filter takes whole module
    # names, so each is listed.
    files = (ROOT / "gradclip").rglob("*.py")
    modules = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in sorted(files)]
    ours = ["__main__", *(m.removesuffix(".__init__") for m in modules)]
    os.environ["PYTHONWARNINGS"] = ",".join(f"error:::{module}" for module in ours)


def kept(metadata: dict) -> dict:
    return {key: value for key, value in metadata.items() if key in KEPT}


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Removes whatever would differ though the notebook does not."""
    notebook = nbformat.from_dict(notebook)
    notebook.update(nbformat=4, nbformat_minor=5)
    notebook.metadata = kept(notebook.metadata) | METADATA
    for number, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{number}")
        cell.metadata = kept(cell.metadata)
        if cell.cell_type == "code":
            # Progress bars and log lines carry times; nbval does not compare them.
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "traceback" in output:
                    output.traceback = [f for f in output.traceback if not IN_A_FILE.match(f)]
    return notebook


def text(notebook: nbformat.NotebookNode) -> str:
    return nbformat.writes(notebook) + "\n"


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,  # else how a long output is cut depends on the time
        resources={"metadata": {"path": path.parent}},
    )
    path.write_text(text(normalise(client.execute())), encoding="utf-8")


def record_time(path: Path, seconds: float) -> None:
    """Writes how long a notebook took, for the page on versions and running times."""
    about = machine()
    times = json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.exists() else {}
    times[path.resolve().relative_to(ROOT).as_posix()] = {
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{about['cpu']}, {about['cores']} cores",
    }
    there = {name: times[name] for name in sorted(times) if (ROOT / name).exists()}
    TIMES.write_text(json.dumps(there, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    set_kernel_environment()
    failed = 0
    for path in map(Path, arguments) if arguments else all_notebooks():
        start = time.perf_counter()
        try:
            execute(path)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed += 1
            print(f"{path}: FAILED, left as it was\n{error}")
        else:
            seconds = time.perf_counter() - start
            record_time(path, seconds)
            print(f"{path}: {seconds:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
