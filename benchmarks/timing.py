"""Times calls in turns."""

import gc
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

Call = Callable[[], Any]
Row = dict[str, Any]
WARM_UP = 2  # rounds
ENOUGH = 0.5  # seconds after which a comparison that has its rounds ends: short calls get more of them
MOST = 200  # rounds


def wall_time(call: Call) -> float:
    start = perf_counter()
    result = call()
    seconds = perf_counter() - start
    del result  # freeing it is not part of the call
    return seconds


def compare(calls: dict[str, Call], rounds: int, timer: Callable[[Call], float] = wall_time) -> list[Row]:
    """Median and quartiles of each call, in seconds. Whatever else the machine does meets each of them alike."""
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    order, end = list(calls), perf_counter() + ENOUGH
    collecting = gc.isenabled()
    gc.disable()
    for done in range(MOST + WARM_UP):
        if done >= rounds + WARM_UP and perf_counter() > end:
            break
        for who in order:
            seconds[who].append(timer(calls[who]))
        order.reverse()  # A B B A A B …: each comes after itself as often as after the other
    if collecting:
        gc.enable()
    rows = []
    for who, times in seconds.items():
        q1, median, q3 = np.percentile(times[WARM_UP:], [25, 50, 75]).tolist()
        rows.append({"who": who, "median": median, "q1": q1, "q3": q3, "rounds": len(times) - WARM_UP})
    return rows
