"""The pages on GPUs: an asynchronous device, kernels that count their bytes, and words that follow from a record."""

import itertools
import json
import math
import re
import time

import matplotlib.pyplot as plt
import numpy as np
import oracle
import pytest
from matplotlib.colors import to_hex

from book.gpu import kernel_imitation, records
from book.gpu.kernel_imitation import CHUNK, Memory, blue, join, passes, sum_squares
from book.gpu.thread_device import Device, draw_spans
from tools.notebooks import ROOT

ABOUT = {"system": "Linux", "architecture": "x86_64", "cpu": "a CPU", "cores": 2, "date": "2026-01-01"}
ABOUT |= {"python": "3.11.0", "versions": {"torch": "2.13.0", "gradclip": "0.1.0"}}


def bar(**its):
    return {"bar": "speed", "value": 2.0, "on": "lstm", "met": True, **its}


def row(who, median, **its):
    return {"who": who, "median": median, "q1": median, "q3": median, "set": "gpt2-small", **its}


def record(gpu=False, bars=({"at_least": 1.0},)):
    about = {**ABOUT, "gpu": "a GPU", "cuda": "13.0", "driver": "600"} if gpu else ABOUT
    key = {"dtype": "float32", "how": "device"} if gpu else {"framework": "torch"}
    own = "foreach" if gpu else "own"
    seconds = [
        row(who, median, case=case, **key)
        for (who, case), median in zip(
            itertools.product(("gradclip", own), ("unclipped", "clipped")), (0.001, 0.003, 0.002, 0.004), strict=True
        )
    ]
    floor = [row("read", 0.0005), row("read", 0.0004), row("read and write", 0.001)]
    floor = [{**its, **({"dtype": "float32"} if gpu else {"framework": "torch"})} for its in floor]
    return {"machine": about, "seconds": seconds, "floor": floor, "bars": [bar(**its) for its in bars]}


# The device -----------------------------------------------------------------------------------------------------------


def test_a_launch_returns_before_the_work_is_done_and_synchronize_after():
    device = Device(asking=0)
    start = time.perf_counter()
    for name in "abc":
        device.launch(name, 0.05)
    asked = time.perf_counter() - start
    device.synchronize()
    done = time.perf_counter() - start
    assert asked < 0.05
    assert done >= 0.15
    kernels = [span for span in device.spans if span.lane == "device"]
    assert [span.name for span in kernels] == ["a", "b", "c"]
    assert all(a.end <= b.start for a, b in itertools.pairwise(kernels))


def test_events_time_what_lies_between_them():
    device = Device(asking=0)
    device.launch("before", 0.05)
    start = device.event()
    device.launch("between", 0.02)
    end = device.event()
    assert not end
    device.launch("after", 0.05)
    device.synchronize()
    assert 0.02 <= end[0] - start[0] < 0.05


def test_idle_is_the_part_without_a_kernel():
    device = Device(asking=0)
    device.launch("a", 0.03)
    device.synchronize()
    time.sleep(0.12)
    device.launch("b", 0.03)
    device.synchronize()
    assert 0.55 < device.idle() < 0.8


def test_both_lanes_are_drawn():
    device = Device()
    origin = time.perf_counter()
    device.launch("clip", 0.01)
    device.synchronize()
    fig, ax = plt.subplots()
    draw_spans(ax, device.spans, origin)
    assert len(ax.patches) == 3
    assert "clip" in {text.get_text() for text in ax.texts}
    plt.close(fig)


# The records ----------------------------------------------------------------------------------------------------------


def test_the_records_of_this_repository_are_sound():
    assert records.load()
    for its in records.load():
        assert records.doubts(its) == []


def test_gpus_come_last_and_are_named(tmp_path):
    assert records.gpus([record()]) == "no GPU has been recorded yet"
    for name, its in {"a": record(gpu=True), "b": record()}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(its))
    found = records.load(tmp_path)
    assert [records.is_gpu(its) for its in found] == [False, True]
    assert records.gpus(found) == "recorded GPUs: a GPU"


@pytest.mark.parametrize("gpu", [False, True])
def test_a_device_is_told_with_its_versions_and_date(gpu):
    told = records.device(record(gpu))
    assert all(part in told for part in ("2026-01-01", "Python 3.11.0", "torch 2.13.0"))
    assert ("driver 600" in told) == gpu
    assert max(map(len, told.splitlines())) <= 70


@pytest.mark.parametrize(("gpu", "what"), [(False, "torch"), (True, "float32")])
def test_times_in_ms_beside_the_fastest_floor(gpu, what):
    header, unclipped, clipped = records.times(record(gpu)).splitlines()
    assert header.split()[-1] == "floor"
    assert unclipped.split() == [what, "unclipped", "1", "2", "0.4"]
    assert clipped.split() == [what, "clipped", "3", "4", "1.4"]


@pytest.mark.parametrize(
    ("its", "factor", "held"),
    [
        ({"value": 3.0, "at_least": 2.0}, 1.5, True),
        ({"value": 1.0, "at_least": 2.0}, 0.5, False),
        ({"value": 8.0, "at_most": 32.0}, 4.0, True),
        ({"value": 64.0, "at_most": 32.0}, 0.5, False),
        ({"value": 0, "at_most": 0}, float("inf"), True),
    ],
)
def test_a_margin_is_above_1_where_a_bar_is_met(its, factor, held):
    assert records.margin(its) == factor
    assert records.holds(its) == held


def test_doubts():
    assert records.doubts(record()) == []
    assert records.doubts(record(bars=[{"at_least": 3.0}])) == ["wrong verdict: speed"]
    its = record()
    its["machine"] = {**its["machine"], "date": ""}
    its["seconds"][0]["q1"] = 1.0
    assert len(records.doubts(its)) == 2


def test_met_and_missed_are_counted_and_drawn_apart():
    its = record(bars=[{"at_least": 1.0}, {"at_least": 3.0, "met": False}, {"at_most": 0, "value": 0}])
    assert records.verdicts(its).startswith("2 of 3 bars met")
    assert records.verdicts(its).count("MISSED") == 1
    fig = records.draw_bars([its, record(gpu=True)])
    dots = [line for line in fig.axes[0].lines if line.get_marker() in ("o", "X")]
    assert [to_hex(dot.get_color()).upper() for dot in dots] == [records.MET, records.MISSED, records.MET]
    assert [dot.get_xdata()[0] > 1 for dot in dots] == [True, False, True]
    assert len(fig.axes) == 2
    plt.close(fig)


# The kernels in NumPy -------------------------------------------------------------------------------------------------

SIZES = [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3]
WAYS = [kernel_imitation.three_kernels, kernel_imitation.always_multiply, kernel_imitation.textbook]


def sample(size):
    return np.random.default_rng(size).standard_normal(size, np.float32)


@pytest.mark.parametrize("clip", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_each_way_clips_as_the_oracle_does(clip, size):
    x = sample(size)
    n = oracle.norm([x.astype(float)])
    for c in (n / 3, 2 * n):
        memory = Memory(x)
        assert clip(memory, c) == pytest.approx(n, rel=1e-6)
        (want,) = oracle.clip_by_global_norm([x.astype(float)], c)
        np.testing.assert_allclose(memory.values, want, rtol=1e-6)


@pytest.mark.parametrize(("clip", "unclipped", "clipped"), [(WAYS[0], (1, 0), (2, 1)), (WAYS[1], (2, 1), (2, 1))])
@pytest.mark.parametrize("size", SIZES)
def test_bytes_are_counted(clip, unclipped, clipped, size):
    assert passes(clip, sample(size), 1e9) == unclipped
    assert passes(clip, sample(size), 1e-9) == clipped


def test_the_textbook_also_writes_and_reads_the_squares():
    assert passes(WAYS[2], sample(100), 1e9) == passes(WAYS[2], sample(100), 1e-9) == (3, 2)


def test_programs_share_all_chunks_and_repeat_their_bits():
    x = sample(SIZES[-1])
    for programs in (1, 2, 6, 9):
        partials = sum_squares(Memory(x), programs)
        assert np.count_nonzero(partials) == min(programs, 6)
        assert join(partials) == pytest.approx(oracle.norm([x.astype(float)]), rel=5.75e-7)
        assert join(sum_squares(Memory(x), programs)) == join(partials)


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-170, 1e-153, 1.0, 1e146, 1e153, 1e300])
@pytest.mark.parametrize("beside", [0.0, 1e-160, 1.0, 1e160])
def test_three_sums_keep_the_norm_of_any_size(size, beside):
    x = np.array([3 * size, 4 * size, beside])
    want = math.hypot(*x)
    assert abs(blue(x) - want) <= 4 * np.spacing(want)


def test_the_imitation_has_the_numbers_of_the_kernels():
    kernels = (ROOT / "gradclip" / "backends" / "triton_kernels.py").read_text()
    imitation = (ROOT / "book" / "gpu" / "kernel_imitation.py").read_text()
    power = re.compile(r"2\.0\*\*(-?\d+)")
    assert set(power.findall(imitation)) == set(power.findall(kernels)) - {"-126"}  # that of float32
    assert f"\nCHUNK = {4 * CHUNK}\n" in kernels
    assert f"\nLANES = {kernel_imitation.LANES}\n" in kernels
