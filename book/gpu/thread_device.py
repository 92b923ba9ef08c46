"""A device in a thread: work is queued at once and done later, in order, as on a GPU."""

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from matplotlib.axes import Axes

COLOURS = {"clip": "#0072B2", "wait": "#D0D0D0"}
OTHER = ["#E69F00", "#009E73", "#CC79A7", "#56B4E9"]


class Span(NamedTuple):
    """What the host or the device did, from when to when, in seconds."""

    lane: str
    name: str
    start: float
    end: float


class Device:
    """Does what is launched, one after the other, in a thread of its own; its kernels sleep instead of computing."""

    def __init__(self, asking: float = 0.001) -> None:
        self.asking = asking  # seconds that a launch takes the host
        self.spans: list[Span] = []
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            self._queue.get()()

    def _run(self, lane: str, name: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        self.spans.append(Span(lane, name, start, time.perf_counter()))

    def launch(self, name: str, seconds: float) -> None:
        """Ask for a kernel of so many seconds, and do not wait for it."""
        self._run("host", name, partial(time.sleep, self.asking))
        work = partial(time.sleep, seconds)
        self._queue.put(partial(self._run, "device", name, work))

    def event(self) -> list[float]:
        """A list for the time at which the device gets to this place."""
        reached: list[float] = []
        self._queue.put(lambda: reached.append(time.perf_counter()))
        return reached

    def synchronize(self) -> None:
        """Wait until all that was launched is done."""
        done = threading.Event()
        self._queue.put(done.set)
        self._run("host", "wait", done.wait)

    def idle(self) -> float:
        """The part of the time, from the first kernel to the end of the last, in which no kernel ran."""
        kernels = [span for span in self.spans if span.lane == "device"]
        busy = sum(span.end - span.start for span in kernels)
        return 1 - busy / (kernels[-1].end - kernels[0].start)


def draw_spans(ax: Axes, spans: list[Span], origin: float) -> None:
    """Draw two lanes over a time in ms: what the host did, and what the device did."""
    colours = dict(COLOURS)
    total = 1e3 * (max(span.end for span in spans) - origin)
    named = set()
    for span in spans:
        if span.name not in colours:
            colours[span.name] = OTHER[(len(colours) - len(COLOURS)) % len(OTHER)]
        start, width = 1e3 * (span.start - origin), 1e3 * (span.end - span.start)
        lane = 1 if span.lane == "host" else 0
        label = None if span.name in named else span.name  # each name once in a legend
        named.add(span.name)
        look: dict[str, Any] = {"color": colours[span.name], "edgecolor": "white", "linewidth": 0.5, "label": label}
        ax.barh(lane, width, left=start, height=0.6, **look)
        if width > 0.014 * len(span.name) * total and (span.lane == "device" or span.name == "wait"):
            colour = "white" if span.name == "clip" else "black"
            ax.text(start + width / 2, lane, span.name, ha="center", va="center", fontsize=11, color=colour)
    ax.set(yticks=[1, 0], yticklabels=["host", "device"], xlabel="time in ms")
    ax.grid(axis="y", visible=False)
