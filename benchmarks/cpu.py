"""``python -m benchmarks cpu``: gradclip beside each framework's own function, on this machine's CPU."""

import json
import math
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .frameworks import FRAMEWORKS
from .record import held_against, limit, machine, table
from .shapes import SETS, SHAPES, elements
from .timing import Row, compare

ROOT = Path(__file__).parent.parent
GPT2, LSTM = SETS[:2]

# How many times as fast as the framework's own function gradclip has to be, on each of these sets.
SPEED = [
    ("numpy", "unclipped", SETS, 3.0),
    ("numpy", "clipped", SETS, 2.0),
    ("torch", "unclipped", (GPT2,), 2.5),
    ("torch", "unclipped", (LSTM,), 2.0),
    ("torch", "unclipped", SETS, 1.0),
    ("torch", "clipped", (GPT2,), 1.4),
    ("torch", "clipped", SETS, 1.0),
    ("tensorflow", "unclipped", SETS, 2.5),
    ("tensorflow", "clipped", SETS, 1.0),
    ("jax", "unclipped", SETS, 1.0),
    ("jax", "clipped", SETS, 1.0),
]
IMPORT = 1.3  # times as long as NumPy's
MEMORY = 32.0  # MB beside the gradients, and beside the result of a functional form
ACCURACY = 1e-6  # rule 3 of the contract
SHARDED = ("1000x64x64", "2")  # DTensors: the set, and the processes that share it


def installed() -> list[str]:
    return [name for name, framework in FRAMEWORKS.items() if all(map(find_spec, framework.needs))]


def run(frameworks: Sequence[str], sets: Sequence[str], rounds: int) -> dict[str, Any]:
    """The whole record."""
    tables: dict[str, list[Row]] = defaultdict(list)
    about = machine()
    tasks = [("speed", framework, name, str(rounds)) for framework in frameworks for name in sets]
    if sys.platform == "linux":  # where a process can tell its own peak
        largest = max(sets, key=elements)
        for framework in frameworks:
            forms = ("gradclip", "functional") if FRAMEWORKS[framework].in_place else ("gradclip",)
            tasks += [("memory", framework, largest, who) for who in (*forms, "own")]
        if "torch" in frameworks and SHARDED[0] in sets:
            tasks.append(("sharded", "torch", *SHARDED))
    with tqdm(total=1 + len(tasks), leave=False, disable=None) as progress:
        progress.set_postfix_str("import")
        imports = {module: partial(import_seconds, module) for module in ("gradclip", "numpy")}
        tables["import"] = compare(imports, rounds, timer=lambda call: call())
        progress.update()
        for task in tasks:
            progress.set_postfix_str(" ".join(task[:3]))
            for name, rows in measure(*task):
                tables[name] += rows
            progress.update()
    return {
        "machine": about,
        "own": {name: FRAMEWORKS[name].own_name for name in frameworks},
        "sets": [{"set": name, "arrays": len(SHAPES[name]), "elements": elements(name)} for name in sets],
        **tables,
        "bars": bars(tables),
    }


def measure(*arguments: str) -> Iterator[tuple[str, list[Row]]]:
    """What benchmarks.measure writes, as it comes."""
    command = [sys.executable, "-m", "benchmarks.measure", *arguments]
    with tempfile.TemporaryFile("w+") as errors:  # TensorFlow writes there when all is well, too
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout
            yield from map(json.loads, process.stdout)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command[1:])} failed:\n{errors.read()}")


def import_seconds(module: str) -> float:
    code = f"from time import perf_counter as now; start = now(); import {module}; print(now() - start)"
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT))


def bars(tables: dict[str, list[Row]]) -> list[Row]:
    """Each bar that this run can tell something about, with the worst value and whether that meets it."""
    times = {(r["framework"], r["case"], r["set"], r["who"]): r["median"] for r in tables["seconds"]}
    imports = {r["who"]: r["median"] for r in tables["import"]}
    held: list[Row] = []
    for framework, case, sets, bar in SPEED:
        where = "each set" if sets == SETS else sets[0]
        ratios = {
            name: times[framework, case, name, "own"] / times[framework, case, name, "gradclip"]
            for name in sets
            if (framework, case, name, "own") in times
        }
        held += held_against(f"{framework} {case}, {where}: times as fast", ratios, at_least=bar)
    shared = {(row["case"], row["who"]): row for row in tables["sharded"]}
    for cases, bar in ((("first call",), 20.0), (("unclipped", "clipped"), 1.0)):
        ratios = {case: shared[case, "own"]["median"] / shared[case, "gradclip"]["median"] for case in cases if shared}
        held += held_against(f"torch sharded, {' and '.join(cases)}: times as fast", ratios, at_least=bar)
    exchanges = {row["set"]: row["exchanges"] for row in shared.values() if "exchanges" in row and row["who"] != "own"}
    held += held_against("torch sharded: exchanges", exchanges, at_most=1)
    held += held_against("import: times NumPy's", {"": imports["gradclip"] / imports["numpy"]}, at_most=IMPORT)
    ours = [row for row in tables["memory"] if row["who"] != "own"]
    for in_place, label in ((True, "MB in place"), (False, "MB beside the result")):
        megabytes = {row["framework"]: row["bytes"] / 1e6 for row in ours if row["in_place"] == in_place}
        held += held_against(f"extra memory: {label}", megabytes, at_most=MEMORY)
    ours = [row for row in tables["accuracy"] if row["who"] == "gradclip"]
    errors = {f"{row['framework']} {row['set']}": row["relative_error"] for row in ours}
    return held + held_against("norm: relative error", errors, at_most=ACCURACY)


def show(record: dict[str, Any]) -> str:
    """Every time, as median and quartiles, then every bar."""
    times = {(r["framework"], r["set"], r["case"], r["who"]): r for r in record["seconds"]}
    firsts = {(r["framework"], r["set"], r["who"]): f"{r['seconds']:.2f}" for r in record["first_call"]}
    # The fastest pass of any framework counts, for memory is as fast for all of them.
    slow_to_fast = sorted(record.get("floor", []), key=itemgetter("median"), reverse=True)
    floors = {(r["set"], r["who"]): r["median"] for r in slow_to_fast}
    lines = []
    for framework, name, case in dict.fromkeys(key[:3] for key in times):
        ours, own = times[framework, name, case, "gradclip"], times[framework, name, case, "own"]
        # All must be read once and, to be clipped, read again and written.
        passes = ("read",) if case == "unclipped" else ("read", "read and write")
        floor = sum(floors.get((name, its), math.nan) for its in passes)
        ratio = f"{own['median'] / ours['median']:.2f}×"
        first = [firsts[framework, name, who] if case == "unclipped" else "" for who in ("gradclip", "own")]
        lines.append([framework, name, case, spread(ours), spread(own), ratio, f"{floor * 1e3:.4g}", *first])
    header = ["", "set", "case", "gradclip, ms", "own, ms", "faster", "floor, ms", "first call, s", "own, s"]
    shared = {(row["case"], row["who"]): row for row in record.get("sharded", [])}
    for case in dict.fromkeys(case for case, _ in shared):
        ours, own = shared[case, "gradclip"], shared[case, "own"]
        times_faster = f"{own['median'] / ours['median']:.2f}×"
        name = f"{ours['set']} on {ours['ranks']} ranks"
        lines.append(["torch", name, case, *map(spread, (ours, own)), times_faster, "", "", ""])
    own_names = "\n".join(f"own, {framework}: {name}" for framework, name in record["own"].items())
    verdicts = [
        [bar["bar"], f"{bar['value']:.3g}", limit(bar), "met" if bar["met"] else "MISSED", bar["on"]]
        for bar in record["bars"]
    ]
    return "\n\n".join([table(header, lines), own_names, table(["bar", "worst", "", "", "on"], verdicts)])


def spread(row: Row) -> str:
    median, *quartiles = (f"{row[key] * 1e3:.4g}" for key in ("median", "q1", "q3") if key in row)
    return f"{median} ({' – '.join(quartiles)})" if quartiles else median
