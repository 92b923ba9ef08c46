"""The harness measures what it says, and says of a missed bar that it is missed. How fast anything is, no test asks."""

import contextlib
import itertools
import json
import subprocess
import sys
import types
from collections import defaultdict
from time import perf_counter

import numpy as np
import pytest
import torch

import gradclip
from benchmarks import cpu, gpu, timing
from benchmarks.frameworks import FRAMEWORKS
from benchmarks.measure import gradients
from benchmarks.record import RESULTS, held_against, versions, write
from benchmarks.shapes import SETS, SHAPES, elements
from benchmarks.timing import compare


def test_the_sets_are_those_that_the_bars_are_set_on():
    counts = {name: (len(SHAPES[name]), elements(name)) for name in SETS}
    assert counts == {
        "gpt2-small": (148, 124_439_808),
        "lstm": (11, 19_780_400),
        "1000x64x64": (1000, 4_096_000),
        "2000x512": (2000, 1_024_000),
    }


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_both_sides_do_the_same_work(name):
    arrays = gradients("tiny")
    exact = np.linalg.norm(np.concatenate([a.ravel() for a in arrays]).astype(np.float64))
    contest = FRAMEWORKS[name](arrays)
    assert [float(norm) for norm in contest.norms()] == pytest.approx([exact, exact], rel=1e-6)
    for norm, clip in ((20.0, contest.gradclip), (10.0, contest.own)):
        result = clip(norm)
        if contest.in_place:
            assert [float(n) for n in contest.norms()] == pytest.approx([norm, norm], rel=1e-6)
        else:
            grads = result[0] if isinstance(result, tuple) else result  # optax loses the norm
            clipped = FRAMEWORKS[name]([np.asarray(g) for g in grads])
            assert [float(n) for n in clipped.norms()] == pytest.approx([norm, norm], rel=1e-6)
    contest.compile()
    contest.functional(1.0)


def test_calls_take_turns_and_the_order_alternates():
    called = []
    rows = compare({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, rounds=9)
    assert "".join(called).startswith("abbaabba")
    assert [row["who"] for row in rows] == ["a", "b"]
    assert all(row["rounds"] >= 9 and 0 < row["q1"] <= row["median"] <= row["q3"] for row in rows)


def test_a_bar_is_held_against_the_worst_value():
    values = {"small": 1.9, "large": 3.0}
    assert held_against("faster", values, at_least=2.0) == [
        {"bar": "faster", "at_least": 2.0, "value": 1.9, "on": "small", "met": False}
    ]
    assert held_against("memory", values, at_most=3.0) == [
        {"bar": "memory", "at_most": 3.0, "value": 3.0, "on": "large", "met": True}
    ]
    assert held_against("faster", {}, at_least=2.0) == []


def times(own, **slower):
    """Tables in which gradclip takes a second everywhere, and the frameworks' own functions ``own`` seconds."""
    tables = defaultdict(list)
    tables["import"] = [{"who": "gradclip", "median": 1.0}, {"who": "numpy", "median": 1.0}]
    for framework in FRAMEWORKS:
        for case in ("unclipped", "clipped"):
            for name in SETS:
                about = {"framework": framework, "case": case, "set": name}
                seconds = slower.get(framework, own) if name == "lstm" else own
                tables["seconds"] += [{**about, "who": "gradclip", "median": 1.0}]
                tables["seconds"] += [{**about, "who": "own", "median": seconds}]
    for case, exchanges in (("first call", {"exchanges": 1}), ("unclipped", {}), ("clipped", {})):
        for who, seconds in (("gradclip", 1.0), ("own", slower.get("sharded", 20.0))):
            tables["sharded"] += [{"set": "", "case": case, "who": who, "median": seconds, **exchanges}]
    return tables


def test_a_missed_bar_is_said_to_be_missed():
    assert all(bar["met"] for bar in cpu.bars(times(own=3.0)))
    missed = {bar["bar"]: bar["on"] for bar in cpu.bars(times(own=3.0, torch=1.5)) if not bar["met"]}
    assert missed == {"torch unclipped, lstm: times as fast": "lstm"}
    missed = [bar["bar"] for bar in cpu.bars(times(own=3.0, jax=0.99)) if not bar["met"]]
    assert missed == ["jax unclipped, each set: times as fast", "jax clipped, each set: times as fast"]
    missed = [bar["bar"] for bar in cpu.bars(times(own=3.0, sharded=19.0)) if not bar["met"]]
    assert missed == ["torch sharded, first call: times as fast"]
    missed = [bar["bar"] for bar in cpu.bars(times(own=3.0, sharded=0.9)) if not bar["met"]]
    assert missed[1:] == ["torch sharded, unclipped and clipped: times as fast"]


def test_a_run_is_recorded_and_shown(tmp_path):
    record = cpu.run(["numpy"], ["tiny"], rounds=1)
    path = write(record, tmp_path)
    read = json.loads(path.read_text())
    assert path.name.endswith(".json")
    assert path.stem == path.stem.lower()
    assert {"machine", "own", "sets", "import", "first_call", "accuracy", "seconds", "floor", "bars"} <= read.keys()
    assert {"system", "architecture", "cpu", "cores", "load", "date", "python", "versions"} == read["machine"].keys()
    assert {"gradclip", "numpy"} <= read["machine"]["versions"].keys()
    assert {(row["case"], row["who"]) for row in read["seconds"]} == {
        ("unclipped", "gradclip"),
        ("unclipped", "own"),
        ("clipped", "gradclip"),
        ("clipped", "own"),
    }
    assert {row["who"] for row in read["floor"]} == {"read", "read and write"}
    shown = cpu.show(read)
    assert "tiny" in shown
    assert all(bar["bar"] in shown for bar in read["bars"])
    assert ("MISSED" in shown) == any(not bar["met"] for bar in read["bars"])


def test_the_versions_are_of_what_is_imported(tmp_path, monkeypatch):
    for folder, version in (("first", "2.14.1"), ("second", "2.13.0")):
        (tmp_path / folder / "torch.dist-info").mkdir(parents=True)
        (tmp_path / folder / "torch.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert versions() == {"torch": "2.14.1", "gradclip": gradclip.__version__}


# On a GPU ------------------------------------------------------------------------------------------------------------


def gpu_tables(**changed):
    """What a run on a GPU could measure where gradclip meets every bar."""
    tables = defaultdict(list)
    for name, dtype in itertools.product(gpu.SETS, gpu.DTYPES):
        about = {"set": name, "dtype": dtype}
        for who, median in (("read", 1.0), ("read, by the largest", 1.1), ("read and write", 2.0)):
            tables["floor"].append({**about, "who": who, "median": median, "q1": median, "q3": median})
        for case, who in itertools.product(gpu.CASES, ("gradclip", "foreach")):
            seconds = {"unclipped": 1.1, "clipped": 3.1}[case] * (3.0 if who == "foreach" else 1.0)
            for how in ("device", "alone"):
                row = {"case": case, "who": who, "how": how, "median": seconds, "q1": seconds, "q3": seconds}
                tables["seconds"].append({**about, **row})
            counts = {"launches": 3, "copies": 0, "syncs": 0, "bytes": 20_000, **changed}
            tables["counts"].append({**about, "case": case, "who": who, **counts})
        tables["accuracy"].append({**about, "who": "gradclip", "relative_error": 1e-8, "gradient_error": 1e-7})
        tables["reproducible"].append({**about, "who": "gradclip", "norms": 1})
    return tables


def test_the_large_set_of_the_gpu_has_a_billion_elements():
    assert elements("one-billion") == 10**9
    assert (*SETS, "one-billion") == gpu.SETS


def test_bars_of_the_gpu():
    assert all(bar["met"] for bar in gpu.bars(gpu_tables()))
    missed = [bar["bar"] for bar in gpu.bars(gpu_tables(syncs=1, bytes=40_000_000)) if not bar["met"]]
    assert missed == ["extra memory, MB", "waits of the host"]
    tables = gpu_tables()
    for row in tables["seconds"]:
        if row["set"] == "lstm" and row["who"] == "gradclip" and row["case"] == "unclipped":
            row["median"] = 1.3
    missed = {bar["bar"]: bar["on"] for bar in gpu.bars(tables) if not bar["met"]}
    assert missed == {"unclipped, each set: times of one read": "lstm float32"}


def test_a_run_on_a_gpu_is_shown_and_named_after_it(tmp_path):
    tables = gpu_tables()
    tables["failed"].append({"set": "lstm", "dtype": "float32", "who": "compiled", "error": "no compiler"})
    about = {**cpu.machine(), "gpu": "NVIDIA H200"}
    record = {"machine": about, "sets": [], "seconds_in_all": 1.0, **tables, "bars": gpu.bars(tables)}
    path = write(record, tmp_path)
    assert path.name == "nvidia-h200.json"
    shown = gpu.show(json.loads(path.read_text()))
    assert "failed: compiled on lstm float32: no compiler" in shown
    assert all(bar["bar"] in shown for bar in record["bars"])
    (line,) = [its for its in shown.splitlines() if "one-billion  float32   clipped    gradclip" in its]
    assert " 97% " in line  # of 3 s, in 3.1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_written():
    before = sorted(RESULTS.iterdir())
    run = subprocess.run([sys.executable, "-m", "benchmarks", "gpu"], cwd=cpu.ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert run.stderr.count("\n") == 1
    assert "needs a CUDA GPU" in run.stderr
    assert sorted(RESULTS.iterdir()) == before


def test_the_gpu_s_benchmark_needs_torch_and_triton_alone():
    others = "tensorflow", "keras", "jax", "jaxlib", "optax", "matplotlib", "tqdm", "pandas", "scipy"
    code = f"import sys; sys.modules.update(dict.fromkeys({others})); import runpy; sys.argv = ['benchmarks', 'gpu']\n"
    code += "from benchmarks import gpu; gpu.torch.cuda.is_available = lambda: False\n"
    code += "runpy.run_module('benchmarks', run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], cwd=cpu.ROOT, capture_output=True, text=True)
    assert "PyTorch sees none" in run.stderr


@pytest.mark.gpu
def test_a_run_on_a_gpu():
    record = gpu.run(["torch"], ["tiny"], rounds=1)
    assert "gradclip" in gpu.show(record)
    assert {row["syncs"] for row in record["counts"] if row["who"] == "gradclip"} == {0}
    assert {row["launches"] for row in record["counts"] if row["who"] == "gradclip"} == {3}


@pytest.fixture
def a_gpu_that_is_a_cpu(monkeypatch):
    """All that the benchmark asks of a GPU, answered by the CPU, with 1 GB of memory."""

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = perf_counter()

        def elapsed_time(self, end):
            return 1e3 * (end.at - self.at)

    about = types.SimpleNamespace(name="A Stub", multi_processor_count=1, L2_cache_size=0, total_memory=10**9)
    answers = {"is_available": True, "get_device_properties": about, "max_memory_allocated": 0, "memory_allocated": 0}
    does_nothing = ("synchronize", "_sleep", "reset_peak_memory_stats", "set_sync_debug_mode", "empty_cache")
    for name, answer in {**answers, **dict.fromkeys(does_nothing)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("randn", "ones"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *shape, device, make=make, **options: make(*shape, **options))
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device, make=torch.empty: make(1, dtype=dtype))
    monkeypatch.setattr(torch, "Generator", lambda device, make=torch.Generator: make())
    monkeypatch.setattr(torch, "compile", lambda function: function)
    profile = types.SimpleNamespace(events=list)
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: contextlib.nullcontext(profile))


def test_a_whole_run_without_a_gpu(a_gpu_that_is_a_cpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(timing, "ENOUGH", 0.0)
    monkeypatch.setattr(gpu.gc, "collect", lambda: None)  # which takes long beside all that tests import
    record = gpu.run(["torch"], ["tiny", "one-billion"], rounds=1)
    assert "one-billion is left out: it needs 16 GB of memory" in capsys.readouterr().err
    assert [its["set"] for its in record["sets"]] == ["tiny"]
    assert {row["who"] for row in record["seconds"]} == {"gradclip", "foreach", "each", "compiled"}
    assert "failed" not in record
    assert "gradclip" in gpu.show(record)
    assert write(record, tmp_path).name == "a-stub.json"
