"""What benchmarks/results holds, in words and pictures that follow from the records alone."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
MET, MISSED = "#0072B2", "#D55E00"
EDGE = 5.0  # a bar missed or passed by more than this factor is drawn here
Record = dict[str, Any]


def load(folder: Path = RESULTS) -> list[Record]:
    """All records, those of a GPU last."""
    found: list[Record] = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=is_gpu)


def is_gpu(record: Record) -> bool:
    return "gpu" in record["machine"]


def device(record: Record) -> str:
    """The device, its versions and the date, on lines of at most 70 characters."""
    its = record["machine"]
    name = its["gpu"] if is_gpu(record) else f"{its['cpu']}, {its['cores']} cores"
    driver = [f"CUDA {its['cuda']}, driver {its['driver']}"] if is_gpu(record) else []
    versions = [f"{package} {version}" for package, version in sorted(its["versions"].items())]
    lines = [f"{name}, {its['system']} {its['architecture']}, {its['date']}"]
    line = ""
    for item in [*driver, f"Python {its['python']}", *versions]:
        if line and len(line) + len(item) > 66:
            lines.append(f"  {line},")
            line = ""
        line += f", {item}" if line else item
    return "\n".join([*lines, f"  {line}"])


def gpus(records: list[Record]) -> str:
    """Which GPUs there are records of, in a sentence."""
    names = [record["machine"]["gpu"] for record in records if is_gpu(record)]
    return f"recorded GPUs: {', '.join(names)}" if names else "no GPU has been recorded yet"


def limit(bar: Record) -> str:
    return f"≥ {bar['at_least']:g}" if "at_least" in bar else f"≤ {bar['at_most']:g}"


def holds(bar: Record) -> bool:
    """Whether the value is on the right side, whatever the record says of it."""
    if "at_least" in bar:
        return bool(bar["value"] >= bar["at_least"])
    return bool(bar["value"] <= bar["at_most"])


def margin(bar: Record) -> float:
    """By which factor a bar is passed; below 1, missed."""
    value = bar["value"]
    if "at_least" in bar:
        return float(value / bar["at_least"])
    return float(bar["at_most"] / value) if value else np.inf


def verdicts(record: Record) -> str:
    """How many bars are met, then each with its worst value."""
    met = sum(bar["met"] for bar in record["bars"])
    lines = [f"{met} of {len(record['bars'])} bars met; the worst value of each:"]
    for bar in record["bars"]:
        verdict = "met" if bar["met"] else "MISSED"
        lines.append(f"{verdict:6} {bar['value']:8.3g} {limit(bar):>8}  {bar['bar']}")
    return "\n".join(lines)


def times(record: Record, name: str = "gpt2-small") -> str:
    """Milliseconds for one set of gradients: gradclip, what its users call today, and the least that memory allows."""
    gpu = is_gpu(record)
    key, own = ("dtype", "foreach") if gpu else ("framework", "own")
    rows = [row for row in record["seconds"] if row["set"] == name and (not gpu or row["how"] == "device")]
    took = {(row[key], row["case"], row["who"]): row["median"] for row in rows}
    lines = [f"{name}, ms{'':12}gradclip {own:>8}    floor"]
    for what, case in dict.fromkeys(its[:2] for its in took):
        if (what, case, "gradclip") not in took:
            continue
        ours, theirs = (1e3 * took.get((what, case, who), np.nan) for who in ("gradclip", own))
        least = 1e3 * floor(record, name, case, what if gpu else None)
        lines.append(f"{what:11}{case:10} {ours:9.3g}{theirs:9.3g}{least:9.3g}")
    return "\n".join(lines)


def floor(record: Record, name: str, case: str, dtype: str | None = None) -> float:
    """Seconds to read all once and, to be clipped, to read and write it; of several measurements the fastest."""
    best: dict[str, float] = {}
    for row in record["floor"]:
        if row["set"] == name and row.get("dtype") == dtype:
            way = "write" if "write" in row["who"] else "read"
            best[way] = min(row["median"], best.get(way, np.inf))
    return best["read"] + (best["write"] if case == "clipped" else 0.0)


def doubts(record: Record) -> list[str]:
    """What speaks against a record; nothing against a sound one."""
    its = record["machine"]
    found = [f"no {name}" for name in ("date", "python", "versions", "system") if not its.get(name)]
    found += [f"wrong verdict: {bar['bar']}" for bar in record["bars"] if bar["met"] != holds(bar)]
    for row in record["seconds"]:
        if not 0 < row["q1"] <= row["median"] <= row["q3"]:
            found.append(f"quartiles out of order: {row}")
    return found


def draw_bars(records: list[Record]) -> Figure:
    """Each bar as a dot: right of the line it is met, left of it missed."""
    heights = [len(record["bars"]) for record in records]
    figure, axes = plt.subplots(
        len(records), figsize=(7.2, 0.32 * sum(heights) + 1.1 * len(records)), height_ratios=heights, squeeze=False
    )
    for ax, record in zip(axes[:, 0], records, strict=True):
        for i, bar in enumerate(record["bars"]):
            x = float(np.clip(margin(bar), 1 / EDGE, EDGE))
            colour, marker = (MET, "o") if bar["met"] else (MISSED, "X")
            ax.plot([1, x], [i, i], color=colour, linewidth=1.5)
            ax.plot(x, i, marker, color=colour, markersize=8)
        ax.axvline(1, color="black", linestyle="--", linewidth=1)
        ax.set_xscale("log", base=2)
        ax.set(xlim=(0.9 / EDGE, 1.1 * EDGE), ylim=(len(record["bars"]) - 0.4, -0.6))
        ax.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
        ax.set_yticks(range(len(record["bars"])), [bar["bar"] for bar in record["bars"]], fontsize=9)
        ax.set_title(device(record).split(",")[0] + f", {record['machine']['date']}", fontsize=11)
        ax.set_xlabel("factor by which the bar is met")
        ax.grid(axis="y", visible=False)
    return figure
