"""What a record says of the machine, and how a value is held against its bar."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions
from operator import itemgetter
from pathlib import Path
from typing import Any

import gradclip

RESULTS = Path(__file__).parent / "results"
PACKAGES = {"gradclip", "numpy", "torch", "tensorflow", "jax", "jaxlib", "optax", "triton"}


def machine() -> dict[str, Any]:
    """The machine and its versions, without any name of a host or a path."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],  # of the minute before: well below 1 on a quiet machine
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What is imported: of two copies of a package on the path, the first; gradclip from a checkout, too."""
    found = {d.name: d.version for d in reversed([*distributions()]) if d.name in PACKAGES}
    return found | {"gradclip": gradclip.__version__}


def cpu_model() -> str:
    if platform.system() == "Darwin":
        return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    listed = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", listed.read_text() if listed.exists() else "")
    return found[1] if found else platform.processor() or "cpu"


def held_against(
    name: str, values: dict[str, float], *, at_least: float | None = None, at_most: float | None = None
) -> list[dict[str, Any]]:
    """A bar with the worst of the values, where it was found, and whether it is met; nothing without values."""
    if not values:
        return []
    if at_least is not None:
        on, worst = min(values.items(), key=itemgetter(1))
        return [{"bar": name, "at_least": at_least, "value": worst, "on": on, "met": worst >= at_least}]
    on, worst = max(values.items(), key=itemgetter(1))
    return [{"bar": name, "at_most": at_most, "value": worst, "on": on, "met": worst <= at_most}]


def limit(bar: dict[str, Any]) -> str:
    return f"≥ {bar['at_least']:g}" if "at_least" in bar else f"≤ {bar['at_most']:g}"


def write(record: dict[str, Any], folder: Path = RESULTS) -> Path:
    about = record["machine"]
    name = about.get("gpu") or "{system}-{architecture}-{cores}cores-{cpu}".format(**about)
    path = folder / (re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") + ".json")
    folder.mkdir(exist_ok=True)
    path.write_text(json.dumps(four_digits(record), indent=1, ensure_ascii=False) + "\n")
    return path


def four_digits(x: Any) -> Any:
    """Numbers as exact as they can be measured: a new record differs from an old one where something changed."""
    if isinstance(x, dict):
        return {key: four_digits(value) for key, value in x.items()}
    if isinstance(x, list):
        return [four_digits(value) for value in x]
    return float(f"{x:.4g}") if isinstance(x, float) else x


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
