"""``python -m benchmarks gpu``: gradclip beside PyTorch's and optax's functions, and beside the floor, on a CUDA GPU.

Every norm and every clipped gradient is held against float64 before anything is timed. Then each call is timed twice.
``device`` is what the GPU needs for it, between two events, however long Python takes: the call finds the GPU busy.
``alone`` is a call after which the host waits for the GPU, and so the longer of the two. Before each timed call other
memory is written, so that no gradient is in the cache: else small sets would be measured there.
"""

import gc
import math
import os
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import accumulate, repeat
from operator import mul
from time import perf_counter
from typing import Any

import torch

import gradclip

from . import shapes
from .record import held_against, limit, machine, table
from .shapes import SHAPES, elements
from .timing import Call, Row, compare

SETS = (*shapes.SETS, "one-billion")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CASES = ("unclipped", "clipped")
SPEED = {"unclipped": 2.5, "clipped": 1.1}  # times as fast as PyTorch's foreach, on the device
OF_ONE_READ = 1.2  # times the time of one read, when nothing is clipped
MEMORY = 32.0  # MB beside the gradients
ACCURACY = 1e-6  # rule 3 of the contract
COMPILED = 150  # arrays; for more, the compiler takes minutes
ENOUGH = 180.0  # seconds after which nothing more is compiled: a run ends within eight minutes


def installed() -> list[str]:
    """Whose functions there are to compare; nobody's without a GPU."""
    if not torch.cuda.is_available():
        return []
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes most of the memory
    return ["torch", *(["jax"] if find_spec("optax") and find_spec("jax") and jax_sees_the_gpu() else [])]


def jax_sees_the_gpu() -> bool:
    import jax

    try:
        return bool(jax.devices("gpu"))
    except RuntimeError:
        return False


# What is compared -----------------------------------------------------------------------------------------------------


class PyTorch:
    """The same gradients for all, clipped in place; each clip takes a threshold and returns the norm."""

    def __init__(self, name: str, dtype: torch.dtype, compiled: bool = False) -> None:
        generator = torch.Generator("cuda").manual_seed(0)
        self.grads = [torch.randn(shape, device="cuda", generator=generator).to(dtype) for shape in SHAPES[name]]
        self.params = [torch.nn.Parameter(g) for g in self.grads]  # their values are read by nobody
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g
        clip_grad_norm_ = torch.nn.utils.clip_grad_norm_
        self.clips: dict[str, Any] = {
            # Collecting the gradients is part of the job: clip_grad_norm_ does it too.
            "gradclip": lambda c: gradclip.clip_by_global_norm_([p.grad for p in self.params], c),
            "foreach": lambda c: clip_grad_norm_(self.params, c, foreach=True),
            "each": lambda c: clip_grad_norm_(self.params, c, foreach=False),
        }
        if compiled:
            fused = torch.compile(lambda grads, c: foreach(grads, c))
            self.clips["compiled"] = lambda c: fused(self.grads, torch.tensor(c))


def foreach(grads: list[torch.Tensor], c: torch.Tensor) -> torch.Tensor:
    """What clip_grad_norm_(foreach=True) does with its gradients, in operations that the compiler takes."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, torch.clamp(c / (norm + 1e-6), max=1.0))
    return norm


class JAX:
    """optax under jit, which makes new arrays of them all."""

    def __init__(self, name: str, dtype: str) -> None:
        import jax
        import optax

        keys = jax.random.split(jax.random.key(0), len(SHAPES[name]))
        self.grads = [jax.random.normal(k, shape, dtype) for k, shape in zip(keys, SHAPES[name], strict=True)]
        self.wait = jax.block_until_ready
        clips = {
            "gradclip.jax": jax.jit(lambda g, c: gradclip.clip_by_global_norm(g, c).grads),
            "optax": jax.jit(lambda g, c: optax.clip_by_global_norm(c).update(g, optax.EmptyState())[0]),
        }
        self.clips = {who: partial(clip, self.grads) for who, clip in clips.items()}


# How it is measured ---------------------------------------------------------------------------------------------------


class Stopwatch:
    """Times calls whose memory is not in the cache."""

    def __init__(self) -> None:
        self.other = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cycles = 0  # for which the GPU is kept busy, until it is asked for the call that is timed

    def hide(self, calls: dict[str, Call]) -> None:
        """Finds out how long the GPU must be busy for every call to be asked for meanwhile."""
        longest = 0.0
        for call in calls.values():
            call()
            torch.cuda.synchronize()
            start = perf_counter()
            call()
            longest = max(longest, perf_counter() - start)
            torch.cuda.synchronize()
        self.cycles = int(2e9 * min(0.2, 1e-3 + 2 * longest))

    def device(self, call: Call) -> float:
        torch.cuda.synchronize()
        self.other.zero_()
        torch.cuda._sleep(self.cycles)
        self.start.record()
        call()
        self.end.record()
        torch.cuda.synchronize()
        return self.start.elapsed_time(self.end) / 1e3

    def alone(self, call: Call) -> float:
        self.other.zero_()
        torch.cuda.synchronize()
        start = perf_counter()
        call()
        torch.cuda.synchronize()
        return perf_counter() - start


def counts(call: Call) -> Row:
    """Kernels launched, copies made, waits of the host, and bytes allocated beside what there was."""
    call()  # what only a first call does is not counted
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    extra = torch.cuda.max_memory_allocated() - before
    del result
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    events = [event.name for event in profile.events() if event.device_type.name == "CUDA"]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in events)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    syncs = sum("synchronizing" in str(warning.message) for warning in caught)
    return {"launches": len(events) - copies, "copies": copies, "syncs": syncs, "bytes": extra}


def exact_norm(grads: Sequence[torch.Tensor]) -> float:
    parts = [part.double().square().sum() for g in grads for part in g.reshape(-1).split(1 << 26)]
    return math.sqrt(math.fsum(torch.stack(parts).tolist()))


def accuracy(grads: Sequence[torch.Tensor], clip: Any) -> Row:
    """The errors of the norm and of the clipped gradients, which afterwards are what they were."""
    before = [g.clone() for g in grads]
    exact = exact_norm(grads)
    norm = float(clip(exact / 2))
    wrong = 0.0
    for g, was in zip(grads, before, strict=True):
        for now, then in zip(g.view(-1).split(1 << 26), was.view(-1).split(1 << 26), strict=True):
            want = then.double() / 2
            wrong = max(wrong, float(((now.double() - want).abs() / want.abs().clamp(min=1e-30)).max()))
        g.copy_(was)
    return {"relative_error": abs(norm / exact - 1), "gradient_error": wrong}


# The run --------------------------------------------------------------------------------------------------------------


def run(frameworks: Sequence[str], sets: Sequence[str], rounds: int) -> dict[str, Any]:
    """The whole record."""
    if not torch.cuda.is_available():
        sys.exit("python -m benchmarks gpu needs a CUDA GPU, and PyTorch sees none; nothing has been written")
    began = perf_counter()
    tables: dict[str, list[Row]] = defaultdict(list)
    # The gradients in float32, a copy of them, and what comparing both in float64 takes.
    memory = torch.cuda.get_device_properties(0).total_memory
    for name in [name for name in sets if 16 * elements(name) > memory]:
        print(f"{name} is left out: it needs {16 * elements(name) / 1e9:.3g} GB of memory", file=sys.stderr)
    sets = [name for name in sets if 16 * elements(name) <= memory]
    tasks = [(name, dtype) for name in sets for dtype in DTYPES]
    for name, dtype in tasks:  # no tqdm: where only torch and triton are installed, this runs too
        print(f"{name} {dtype}, after {perf_counter() - began:.0f} s", file=sys.stderr)
        compiled = len(SHAPES[name]) <= COMPILED and perf_counter() - began < ENOUGH
        for measured in (measure, measure_jax) if "jax" in frameworks and compiled else (measure,):
            for where, row in measured(name, dtype, rounds, compiled):
                tables[where].append({"set": name, "dtype": dtype, **row})
        gc.collect()
        torch.cuda.empty_cache()
    return {
        "machine": {**machine(), **gpu()},
        "sets": [{"set": name, "arrays": len(SHAPES[name]), "elements": elements(name)} for name in sets],
        "seconds_in_all": perf_counter() - began,
        **tables,
        "bars": bars(tables),
    }


def gpu() -> dict[str, Any]:
    about = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.check_output(query, text=True).split()[0]
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {
        "gpu": about.name,
        "multiprocessors": about.multi_processor_count,
        "cache": about.L2_cache_size,
        "memory": about.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,  # in place of CUDA, on an AMD GPU
    }


def measure(name: str, dtype: str, rounds: int, compiled: bool) -> Iterator[tuple[str, Row]]:
    contest = PyTorch(name, DTYPES[dtype], compiled)
    watch = Stopwatch()
    # Right before fast.
    for who, clip in list(contest.clips.items()):
        try:
            yield "accuracy", {"who": who, **accuracy(contest.grads, clip)}
        except Exception as error:  # what fails beside gradclip is told, and the rest goes on
            if who == "gradclip":
                raise
            del contest.clips[who]
            yield "failed", {"who": who, "error": f"{type(error).__name__}: {error}"[:200]}
    norms = {float(contest.clips["gradclip"](math.inf)) for _ in range(5)}
    yield "reproducible", {"who": "gradclip", "norms": len(norms)}
    norm = exact_norm(contest.grads)
    # Clipping in place shrinks the gradients. So each clipped call asks for 1 % less than the one before it left.
    shrinking = accumulate(repeat(0.99), mul, initial=0.99 * norm)
    for case, c in (("unclipped", repeat(2 * norm)), ("clipped", shrinking)):
        calls = {who: lambda clip=clip, c=c: clip(next(c)) for who, clip in contest.clips.items()}
        for who, call in calls.items():
            yield "counts", {"case": case, "who": who, **counts(call)}
        watch.hide(calls)
        for how, timer in (("device", watch.device), ("alone", watch.alone)):
            for row in compare(calls, rounds, timer):
                yield "seconds", {"case": case, "how": how, **row}
    del contest, calls
    size = elements(name) * DTYPES[dtype].itemsize // 4
    flat = torch.ones(size, device="cuda")  # the same number of bytes, in the type that is fastest
    passes = {"read": flat.sum, "read, by the largest": flat.max, "read and write": partial(flat.mul_, 1.0)}
    watch.hide(passes)
    for row in compare(passes, rounds, watch.device):
        yield "floor", row


def measure_jax(name: str, dtype: str, rounds: int, compiled: bool) -> Iterator[tuple[str, Row]]:
    """The time of a call among ten, which hides how long Python takes, and that of one alone."""
    try:
        contest = JAX(name, dtype)
    except Exception as error:
        yield "failed", {"who": "jax", "error": f"{type(error).__name__}: {error}"[:200]}
        return
    wait = contest.wait

    def among_ten(call: Call) -> float:
        start = perf_counter()
        for _ in range(10):
            result = call()
        wait(result)
        return (perf_counter() - start) / 10

    def alone(call: Call) -> float:
        start = perf_counter()
        wait(call())
        return perf_counter() - start

    norm = math.sqrt(elements(name))  # of so many normal numbers, nearly
    for case, c in (("unclipped", 2 * norm), ("clipped", norm / 2)):
        calls = {who: partial(clip, c) for who, clip in contest.clips.items()}
        for how, timer in (("device", among_ten), ("alone", alone)):
            for row in compare(calls, rounds, timer):
                yield "seconds", {"case": case, "how": how, **row}


def floors(tables: dict[str, list[Row]]) -> dict[tuple[str, str, str], float]:
    """The least time of each set, dtype and case: all is read once and, to be clipped, read again and written."""
    passes = {(row["set"], row["dtype"], row["who"]): row["median"] for row in tables["floor"]}
    least = {}
    for name, dtype in dict.fromkeys(key[:2] for key in passes):
        read = min(passes[name, dtype, who] for who in ("read", "read, by the largest"))
        least[name, dtype, "unclipped"] = read
        least[name, dtype, "clipped"] = read + passes[name, dtype, "read and write"]
    return least


def bars(tables: dict[str, list[Row]]) -> list[Row]:
    """Each bar with the worst value and whether that meets it: on sets of any size, and on those beyond any cache."""
    keys = ("set", "dtype", "case", "who")
    times = {tuple(row[k] for k in keys): row["median"] for row in tables["seconds"] if row["how"] == "device"}
    least = floors(tables)
    held: list[Row] = []
    for case, bar in SPEED.items():
        ratios = {
            f"{name} {dtype}": times[name, dtype, its, "foreach"] / t
            for (name, dtype, its, who), t in times.items()
            if its == case and who == "gradclip"
        }
        held += held_against(f"{case}, each set: times as fast as foreach", ratios, at_least=bar)
    of_one_read = {
        (name, dtype): t / least[name, dtype, case]
        for (name, dtype, case, who), t in times.items()
        if case == "unclipped" and who == "gradclip"
    }
    for where, some in (("each set", SETS), ("sets of 100 MB and more", ("gpt2-small", "one-billion"))):
        ratios = {f"{name} {dtype}": ratio for (name, dtype), ratio in of_one_read.items() if name in some}
        held += held_against(f"unclipped, {where}: times of one read", ratios, at_most=OF_ONE_READ)
    ours = [row for row in tables["counts"] if row["who"] == "gradclip"]
    megabytes = {f"{row['set']} {row['dtype']} {row['case']}": row["bytes"] / 1e6 for row in ours}
    held += held_against("extra memory, MB", megabytes, at_most=MEMORY)
    waits = {f"{row['set']} {row['dtype']} {row['case']}": row["syncs"] for row in ours}
    held += held_against("waits of the host", waits, at_most=0)
    ours = [row for row in tables["accuracy"] if row["who"] == "gradclip"]
    errors = {f"{row['set']} {row['dtype']}": row["relative_error"] for row in ours}
    held += held_against("norm: relative error", errors, at_most=ACCURACY)
    errors = {f"{row['set']} {row['dtype']}": row["gradient_error"] for row in ours if row["dtype"] == "float32"}
    held += held_against("float32 gradients: relative error", errors, at_most=ACCURACY)
    norms = {f"{row['set']} {row['dtype']}": row["norms"] for row in tables["reproducible"]}
    return held + held_against("different norms of the same gradients in 5 calls", norms, at_most=1)


def show(record: dict[str, Any]) -> str:
    """Every time, as median and quartiles, with the bandwidth it stands for; then the floors, and every bar."""
    tables = defaultdict(list, record)
    count = {tuple(row[k] for k in ("set", "dtype", "case", "who")): row for row in tables["counts"]}
    error = {tuple(row[k] for k in ("set", "dtype", "who")): row["relative_error"] for row in tables["accuracy"]}
    alone = {
        tuple(row[k] for k in ("set", "dtype", "case", "who")): row["median"]
        for row in tables["seconds"]
        if row["how"] == "alone"
    }
    least = floors(tables)
    lines = []
    for row in tables["seconds"]:
        if row["how"] != "device":
            continue
        name, dtype, case, who = key = tuple(row[k] for k in ("set", "dtype", "case", "who"))
        moved = elements(name) * DTYPES[dtype].itemsize * (1 if case == "unclipped" else 3)
        its = count.get(key, {})
        lines.append(
            [
                *key,
                f"{row['median'] * 1e6:.4g} ({row['q1'] * 1e6:.4g} – {row['q3'] * 1e6:.4g})",
                f"{moved / row['median'] / 1e9:.4g}",
                f"{least[name, dtype, case] / row['median']:.0%}",
                f"{alone[key] * 1e6:.4g}",
                str(its.get("launches", "")),
                str(its.get("copies", "")),
                str(its.get("syncs", "")),
                f"{its['bytes'] / 1e6:.4g}" if its else "",
                f"{error[name, dtype, who]:.1e}" if (name, dtype, who) in error else "",
            ]
        )
    header = ["set", "dtype", "case", "", "device, µs", "GB/s", "of the floor", "alone, µs"]
    header += ["launches", "copies", "waits", "extra MB", "error"]
    passes = []
    for row in tables["floor"]:
        name, dtype, who = (row[k] for k in ("set", "dtype", "who"))
        moved = elements(name) * DTYPES[dtype].itemsize * (2 if "write" in who else 1)
        passes.append([name, dtype, who, f"{row['median'] * 1e6:.4g}", f"{moved / row['median'] / 1e9:.4g}"])
    verdicts = [
        [bar["bar"], f"{bar['value']:.3g}", limit(bar), "met" if bar["met"] else "MISSED", bar["on"]]
        for bar in record["bars"]
    ]
    return "\n\n".join(
        [
            table(header, lines),
            table(["floor", "", "", "µs", "GB/s"], passes),
            table(["bar", "worst", "", "", "on"], verdicts),
            *(f"failed: {row['who']} on {row['set']} {row['dtype']}: {row['error']}" for row in tables["failed"]),
            f"{record['seconds_in_all']:.0f} s in all",
        ]
    )
