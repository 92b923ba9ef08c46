"""The report as one HTML page, which needs no file and no network beside it: a threshold to move over the norms."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from math import floor, inf, log10
from string import Template
from typing import Any

import numpy as np

import gradclip

from . import SHARES, heading, shortened, trusted
from .facts import Facts
from .verdict import Finding, number, percent

POINTS, QUANTILES, BOXES = 600, 10_001, 48
LEVELS = {"wrong": "Wrong", "warning": "To bear in mind", "note": "Note", "good": "In order"}


def page(runs: dict[str, Facts], found: dict[str, list[Finding]]) -> str:
    """The page on these runs."""
    names = shortened(list(runs))
    sections, data = [], []
    for place, (path, facts) in enumerate(runs.items()):
        name = f"run-{place}"
        drawn = bool((facts.norms > 0).any())
        sections.append(_section(name, names[path], facts, found[path], drawn, alone=len(runs) == 1))
        if drawn:
            data.append({"id": name, **_drawing(facts)})
    if len(runs) > 1:
        sections.insert(0, _comparison({names[path]: facts for path, facts in runs.items()}))
    title = (
        f"{next(iter(names.values()))}: its gradient norms"
        if len(runs) == 1
        else f"The gradient norms of {len(runs)} runs"
    )
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.safe_substitute(
        title=escape(title),
        body="\n".join(sections),
        # In a script, "</" would end it, and "<!--" begin a comment.
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        version=gradclip.__version__,
    )


def _section(name: str, title: str, facts: Facts, findings: Sequence[Finding], drawn: bool, alone: bool) -> str:
    head = "" if alone else f"<h2>{escape(title)}</h2>\n"
    first = f'<p class="headline">{escape(findings[0].says)}</p>\n' if findings else ""
    html = f'{head}<p class="facts">{escape(heading(facts))}</p>\n{first}'
    if drawn:
        html += FIGURE.substitute(name=name, title=escape(title, quote=True))
        html += _thresholds(name, escape(title), facts) if trusted(findings) else ""
    level = "h2" if alone else "h3"
    html += f'<{level}>What it says</{level}>\n<ul class="findings">\n'
    html += "\n".join(_finding(one) for one in findings) + "\n</ul>\n"
    if facts.spikes and trusted(findings):
        html += _spikes(escape(title), facts, level)
    return html + "".join(f"<p>{escape(note)}</p>\n" for note in facts.run.notes)


FIGURE = Template(
    """<figure id="$name">
<svg role="img" aria-label="Norms of the gradient over the steps of $title"></svg>
<div class="control"><label for="$name-slider">Threshold <b></b></label>
<input id="$name-slider" type="range" min="0" step="1"></div>
<output for="$name-slider"></output>
<figcaption>Each dot is a norm, or the median of a stretch of the run, whose smallest and largest norm a bar joins. Blue
is what the threshold would clip: move it by the slider, its arrow keys, or in the picture.</figcaption>
<noscript><p>The picture needs JavaScript; the verdict below does not.</p></noscript>
</figure>
"""
)


def _table(label: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls inside itself, by the keyboard too. The first cell of each row names it."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


def _thresholds(name: str, title: str, facts: Facts) -> str:
    rows = []
    for share in SHARES:
        limit = facts.quantile(share)
        button = (
            f'<button data-run="{name}" value="{limit!r}" '
            f'aria-label="show the threshold {number(limit)}, which clips {share:.0%}">show</button>'
        )
        rows.append([f"{share:.0%}", number(limit), button])
    return _table(f"{title}: thresholds and what they clip", ["would clip", "threshold", "in the picture"], rows)


def _finding(one: Finding) -> str:
    advice = f"<p>{escape(one.advice)}</p>" if one.advice else ""
    return (
        f'<li class="{one.level}"><p class="level">{LEVELS[one.level]}: {escape(one.name)}</p>'
        f"<p>{escape(one.says)}</p>{advice}"
        f'<details class="why"><summary>Why; evidence: {one.evidence}</summary>'
        f"<p>{escape(one.reason)} <br>Source: {escape(one.source)}.</p></details></li>"
    )


def _spikes(title: str, facts: Facts, level: str) -> str:
    after = {True: "higher", False: "not higher", None: "not known"}
    largest = sorted(facts.spikes, key=lambda one: -one.factor)[:20]
    rows = [[str(one.step), number(one.norm), f"{number(one.factor)}×", after[one.loss_rose]] for one in largest]
    head = ["step", "norm", "of the median before", "loss afterwards"]
    return f"<{level}>The largest spikes</{level}>\n" + _table(f"{title}: the largest spikes", head, rows)


def _comparison(runs: dict[str, Facts]) -> str:
    rows = [
        [
            escape(name),
            str(len(facts.run)),
            *map(number, (facts.median, facts.quantile(0.1), facts.largest)),
            percent(facts.clip_fraction),
        ]
        for name, facts in runs.items()
    ]
    return _table("the runs side by side", ["run", "norms", "median", "90%", "largest", "clipped"], rows)


def _drawing(facts: Facts) -> dict[str, Any]:
    """The numbers that the page draws: as many as a screen can show, and of the norms enough for a share to 0.01%."""
    norms = np.sort(facts.norms[facts.norms > 0])
    low, high = float(norms[0]), float(norms[-1])
    low = max(low, float(np.quantile(norms, 0.01)) / 10)  # a few tiny norms would leave no room for all others
    if 0 < facts.max_norm < inf:
        low, high = min(low, max(facts.max_norm, low / 100)), max(high, min(facts.max_norm, 100 * high))
    low, high = low / 1.15, high * 1.15
    points = []
    for places in np.array_split(np.arange(facts.count), min(POINTS, facts.count)):
        part = facts.all[places]
        part = part[np.isfinite(part) & (part > 0)]
        if part.size:
            least, middle, most = np.quantile(np.clip(part, low, high), (0, 0.5, 1))
            points.append([int(facts.steps[places[len(places) // 2]]), *map(_short, (least, middle, most))])
    everything = np.sort(facts.norms)
    sketch = everything if len(everything) <= QUANTILES else np.quantile(everything, np.linspace(0, 1, QUANTILES))
    counts, _ = np.histogram(np.log(np.clip(norms, low, high)), BOXES, (np.log(low), np.log(high)))
    wrong = facts.steps[~facts.finite]
    return {
        "count": facts.norms.size,
        "first": int(facts.steps[0]),
        "last": int(facts.steps[-1]),
        "low": low,
        "high": high,
        "max_norm": facts.max_norm if 0 < facts.max_norm < inf else facts.quantile(0.1),
        "ticks": _ticks(low, high),
        "points": points,
        "sorted": [_short(norm) for norm in sketch],
        "histogram": counts.tolist(),
        "nonfinite": wrong[np.linspace(0, len(wrong) - 1, min(len(wrong), 50)).astype(int)].tolist(),
    }


def _short(norm: Any) -> float:
    """Six digits: the page shows three."""
    return float(f"{float(norm):.6g}")


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten, at most eight; with 2 and 5 between them where there are few."""
    exponents = range(floor(log10(low)), floor(log10(high)) + 1)
    digits = (1, 2, 5) if log10(high / low) < 3 else (1,)
    every = 1 + len(exponents) // 8
    ticks = [float(f"{digit}e{exponent}") for exponent in exponents[::every] for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]
