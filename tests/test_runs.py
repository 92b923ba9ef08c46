"""gradclip.runs: every format of log, the quirks of each, and what cannot be read."""

import json
import math
import re
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip import NormHistory, runs
from gradclip.runs import columns, streams

INF, NAN = math.inf, math.nan


@pytest.fixture(scope="module")
def logs(pytestconfig):
    """The same run of 40 logged steps as each program would log it; pages include these files."""
    return pytestconfig.rootpath / "book" / "snippets" / "logs"


@pytest.fixture(scope="module")
def rows(logs):
    return [json.loads(line) for line in (logs / "lines.jsonl").read_text().splitlines()]


@pytest.fixture
def written(tmp_path):
    """Writes a log, of text or bytes, and returns where."""

    def write(content, name="log"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# Every format ---------------------------------------------------------------------------------------------------------

# The file, its format, the norm's name, steps as logged, the threshold that the log names, and what is not as in the
# other files: norms, their last digit, those that are missing, losses, the first learning rate.
TENS, ONES = range(10, 401, 10), range(1, 41)
FORMATS = [
    ("trainer_state.json", "Trainer state", "grad_norm", TENS, INF, {}),
    ("trainer_printed.txt", "printed dicts", "grad_norm", range(40), 1.0, {"rtol": 5e-3}),
    ("swift_logging.jsonl", "JSON lines", "grad_norm", TENS, INF, {"nan": False}),
    ("lines.jsonl", "JSON lines", "grad_norm", TENS, INF, {}),
    ("table.csv", "CSV", "grad_norm", TENS, 1.0, {"nan": False}),
    ("lightning_metrics.csv", "CSV", "grad_2.0_norm_total", TENS, INF, {"nan": False}),
    (
        "rllib_result.json",
        "RLlib's result.json",
        "info/learner/default_policy/learner_stats/grad_gnorm",
        ONES,
        40.0,
        {"norms": lambda n: np.minimum(40, 45 * n), "atol": 5e-6, "nan": False},
    ),
    (
        "rllib_progress.csv",
        "CSV",
        "info/grad_gnorm",
        ONES,
        INF,
        {"norms": lambda n: np.minimum(40, 45 * n), "atol": 5e-6, "nan": False},
    ),
    ("megatron.txt", "Megatron-LM", "grad norm", TENS, 1.0, {"atol": 5e-4, "nan": False, "without": 2}),
    ("torchtitan.txt", "torchtitan", "grad_norm", TENS, INF, {"atol": 5e-5, "nan": False, "rate": NAN}),
    ("nanogpt.txt", "lines of text", "norm", TENS, 1.0, {"atol": 5e-5, "nan": False}),
    ("fairseq.txt", "fairseq", "gnorm", TENS, 25.0, {"norms": lambda n: 20 * n, "atol": 5e-4, "nan": False}),
    ("mmengine.txt", "mmengine", "grad_norm", range(50, 2001, 50), 35.0, {"norms": lambda n: 10 * n, "atol": 5e-5}),
    (
        "mmengine_scalars.json",
        "mmengine's scalars.json",
        "grad_norm",
        range(50, 2001, 50),
        INF,
        {"norms": lambda n: 10 * n, "nan": False},
    ),
    # The steps from 1000 on are logged as 1K, 1K, 1K, 2K …
    (
        "lerobot.txt",
        "LeRobot",
        "grdn",
        [s if s < 1000 else 1000 * round(s / 1000) for s in range(200, 8001, 200)],
        10.0,
        {"atol": 5e-4, "nan": False},
    ),
]


@pytest.mark.parametrize(("name", "form", "key", "steps", "max_norm", "more"), FORMATS, ids=[f[0] for f in FORMATS])
def test_a_log_of_every_format_is_the_same_run(logs, rows, name, form, key, steps, max_norm, more):
    run = runs.read(logs / name)
    assert (run.format, run.key) == (form, key)
    there = [i for i in range(40) if i != more.get("without")]
    assert run.steps == [list(steps)[i] for i in there]
    want = [more.get("norms", float)(rows[i]["grad_norm"]) for i in there]
    got, gone = np.array(run.norms), np.isnan(want)
    assert (np.isnan(got) == (gone if more.get("nan", True) else False)).all()
    np.testing.assert_allclose(got[~gone], np.array(want)[~gone], rtol=more.get("rtol", 1e-6), atol=more.get("atol", 0))
    np.testing.assert_allclose(run.losses, [rows[i]["loss"] for i in there], atol=5e-4)
    np.testing.assert_allclose(run.learning_rates[0], more.get("rate", rows[0]["lr"]), rtol=1e-2)
    assert set(run.max_norms) == {max_norm}
    assert run.max_norm_source == ("" if max_norm == INF else "log")
    assert (run.bad_rows, run.superseded, run.other_runs) == (0, 0, [])
    assert bool(run.averaged) == (form in ("LeRobot", "fairseq") or "mmengine" in form)


def test_every_example_log_is_tested(logs):
    assert {path.name for path in logs.iterdir()} == {name for name, *_ in FORMATS} | {"espnet.txt"}


def test_what_stands_beside_the_norms_is_read_too(logs):
    megatron = runs.read(logs / "megatron.txt")
    assert (megatron.optimizer, megatron.skipped, set(megatron.loss_scales)) == ("adam", 1, {65536.0})
    assert runs.read(logs / "trainer_printed.txt").optimizer == "adamw_torch"
    assert runs.read(logs / "fairseq.txt").optimizer == "adam"


def test_a_table_of_our_own_comes_back_whole(tmp_path):
    history = NormHistory()
    for step, norm in enumerate([0.5, NAN, INF, 1e-30, 3.0]):
        history.record(norm, max_norm=1.0 + step, step=7 * step, loss=2.0 / (step + 1), learning_rate=1e-4)
    history.to_csv(tmp_path / "norms.csv")
    run = runs.read(tmp_path / "norms.csv")
    for name in ("steps", "norms", "max_norms", "losses", "learning_rates"):
        assert str(getattr(run, name)) == str(getattr(history, name))


def test_tensorboards_event_files(tmp_path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    writer = EventFileWriter(str(tmp_path))
    for step in range(30):
        for tag, value in {"train/loss": 2.0 - step / 100, "train/grad_norm": 0.5 + step, "eval/loss": 3.0}.items():
            event = Event(step=step)
            if step % 2:  # as PyTorch writes them, and as TensorFlow 2 does
                event.summary.value.add(tag=tag, simple_value=value)
            else:
                event.summary.value.add(tag=tag, tensor=make_tensor_proto(np.float32(value)))
            writer.add_event(event)
    writer.close()
    (path,) = tmp_path.iterdir()
    run = runs.read(path, max_norm=10)
    assert (run.format, run.key, run.bad_rows) == ("TensorBoard", "train/grad_norm", 0)
    assert (run.norms, run.steps) == ([0.5 + step for step in range(30)], list(range(30)))
    np.testing.assert_allclose(run.losses, 2 - np.arange(30) / 100, rtol=1e-6)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])  # as while the run goes on
    assert (len(runs.read(path)), runs.read(path).bad_rows) == (30, 1)
    path.write_bytes(whole[:-60])
    assert (len(runs.read(path)), runs.read(path).bad_rows) == (29, 1)


def test_without_tensorboard_its_files_name_the_package(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    start = (
        b"\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7f\x4b\x22" + b"\x09\x00\x00\x00\x00\x00\x00\xd0A\x1a\x0dbrain.Event:2"
    )
    with pytest.raises(runs.LogError, match=r"TensorBoard's, which the package tensorboard reads: pip install"):
        runs.read(written(start))


# Their quirks ---------------------------------------------------------------------------------------------------------


def trainer(*history, **more):
    return json.dumps({**more, "log_history": list(history)}, indent=2)


def lines(norms, steps=None, **more):
    steps = range(1, len(norms) + 1) if steps is None else steps
    return "".join(json.dumps({"step": s, "grad_norm": n, **more}) + "\n" for s, n in zip(steps, norms, strict=True))


QUIRKS = {
    "bare NaN and Infinity in JSON": (
        trainer({"step": 1, "grad_norm": NAN}, {"step": 2, "grad_norm": INF}, {"step": 3, "grad_norm": 0.5}),
        [NAN, INF, 0.5],
    ),
    "rows without a norm between": (trainer({"step": 1, "grad_norm": 1}, {"step": 1, "eval_loss": 2}), [1]),
    "everything in one line": (json.dumps({"log_history": [{"step": 1, "grad_norm": 1.5}]}), [1.5]),
    "other keys first and last": (trainer({"step": 1, "grad_norm": 1.5}, best_metric=None, zeros=[0] * 9), [1.5]),
    "a bare array of rows": ('[\n{"step": 1, "grad_norm": 1},\n{"step": 2, "grad_norm": 2}\n]', [1, 2]),
    "numbers as texts": ('{"step": "1", "grad_norm": "3.62E-06"}\n{"step": "2", "grad_norm": "inf"}\n', [3.62e-6, INF]),
    "a first line about the run": ('{"seed": 0, "config": "x"}\n' + lines([1, 2]), [1, 2]),
    "a byte order mark": ("\ufeff" + lines([1, 2]), [1, 2]),
    "UTF-16, as PowerShell's > writes it": (lines([1, 2]).encode("utf-16"), [1, 2]),
    "Windows' line ends": (lines([1, 2]).replace("\n", "\r\n"), [1, 2]),
    "empty lines": (lines([1, 2]).replace("\n", "\n\n"), [1, 2]),
    "an evaluation row that counts epochs as steps": (
        lines([1, 2], [50, 100]) + '{"map": 0.3, "step": 1}\n' + lines([3], [150]),
        [1, 2, 3],
    ),
    "NumPy's way to print a number": ("{'loss': np.float64(2.5), 'grad_norm': np.float64(0.25)}\n", [0.25]),
    "a tensor's way to print a number": ("{'grad_norm': tensor(0.25), 'epoch': 1.0}\n", [0.25]),
    "a dict after a progress bar": ("  5%|#4 | 10/200 [00:10<03:10]{'loss': 1.0, 'grad_norm': 0.25}\n", [0.25]),
    "a notebook's output": (
        json.dumps(
            {"cells": [{"outputs": [{"text": ["{'loss': 1.0, 'grad_norm': 0.25}\n"]}]}], "nbformat": 4}, indent=1
        ),
        [0.25],
    ),
    "JSON in a line of a logger": ('INFO 12:00 {"step": 3, "grad_norm": 0.25, "loss": 1}\n', [0.25]),
    "llm.c": ("step   10/19560 | loss 6.301 (+1.00z)| norm 0.3712 (+0.20z)| lr 1.00e-04 | 100 ms\n", [0.3712]),
    "nanoGPT's words": ("iter 100: loss 3.21, norm 0.37, time 30.1ms\n", [0.37]),
    "key=value": ("[train] step=10 loss=2.5 lr=1e-4 grad_norm=0.37 tok/s=12\n", [0.37]),
    "fairseq's old lines": (
        "| epoch 001: 100 / 900 loss=5.2, num_updates=100, lr=0.1, gnorm=20.751, clip=0\n",
        [20.751],
    ),
    "a name that most do not have": ("step: 10 Gradient Norm: 0.37\n", [0.37]),
    "W&B's table of a chart": (
        '"Step","wild-fire-1 - train/grad_norm","wild-fire-1 - train/grad_norm__MIN"\n"1","0.5","9"\n"2","0.75","9"\n',
        [0.5, 0.75],
    ),
    "a table by semicolons": ("step;grad_norm\n1;0.5\n", [0.5]),
    "a table by tabs, with an index": ("\tstep\tgrad_norm\n0\t1\t0.5\n", [0.5]),
    "one column per layer beside the total": ("step,grad_2.0_norm/0.weight,grad_2.0_norm_total\n1,9.0,0.5\n", [0.5]),
    "a mean beside the norm itself": ("step,grad_norm,grad_norm_avg\n1,0.5,9\n", [0.5]),
    "a validation's norm beside it": ('{"step": 1, "grad_norm": 0.5, "val/grad_norm": 9}\n', [0.5]),
    "a total beside a network's own": ('{"step": 1, "grad_norm": 0.5, "critic/grad_norm": 9}\n', [0.5]),
    "the threshold's name holds the norm's": ("max_grad_norm: 2.0\nclip_grad_norm=3\nstep 1 grad_norm: 0.5\n", [0.5]),
    "an empty cell": ("step,grad_norm,loss\n1,,2.5\n2,0.5,\n", [0.5]),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_quirk(written, quirk):
    content, want = QUIRKS[quirk]
    run = runs.read(written(content))
    np.testing.assert_array_equal(run.norms, want)
    assert run.bad_rows == 0


@pytest.mark.parametrize(
    ("text", "max_norm"),
    [
        ("  clip_grad ................................ 0.5\n", 0.5),
        ("optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))\n", 35),
        ("'max_grad_norm': 0.3,\n", 0.3),
        ('"gradient_clipping": 1e-1,\n', 0.1),
        ("fairseq-train data --clip-norm 0.1 --lr 1\n", 0.1),
        ("Overriding: grad_clip = 1\n", 1),
        ("max_grad_norm=0.0, seed=1\n", INF),  # trainers take 0 for none
        ("grad_clip_percentile = 10\n", INF),
        ("clip=100.000\n", INF),
    ],
)
def test_the_threshold_in_a_line_of_settings(written, text, max_norm):
    assert set(runs.read(written(text + "step 1 loss 2 grad_norm 0.7\n")).max_norms) == {max_norm}


def test_an_evaluations_loss_is_not_the_runs(written):
    run = runs.read(written('{"step": 1, "grad_norm": 0.5, "val/loss": 9, "eval_loss": 8, "lr": 0.1}\n'))
    assert (str(run.losses), run.learning_rates) == ("[nan]", [0.1])


def test_the_threshold_given_is_the_one_that_counts(logs):
    run = runs.read(logs / "table.csv", max_norm=2)
    assert (set(run.max_norms), run.max_norm_source) == ({2.0}, "argument")
    with pytest.raises(ValueError, match="max_norm must be ≥ 0, got -1"):
        runs.read(logs / "table.csv", max_norm=-1)


def test_deepspeeds_skipped_steps_are_counted(written):
    overflow = "[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768\n"
    run = runs.read(written(overflow + "step 1 grad_norm 0.5\n" + overflow))
    assert (run.skipped, run.norms) == (2, [0.5])


def test_rows_of_the_same_step_belong_together(written):
    table = "step,loss,grad_norm,lr\n1,2.5,,\n1,,0.5,\n1,,,0.1\n2,,0.6,\n2,2.4,,\n3,2.3,,\n"
    run = runs.read(written(table))
    assert (run.norms, run.losses) == ([0.5, 0.6], [2.5, 2.4])
    np.testing.assert_array_equal(run.learning_rates, [0.1, NAN])
    assert run.rows == 6


# Pieces and runs ------------------------------------------------------------------------------------------------------


def test_a_resumed_run_has_each_step_once(written):
    first, second, third = range(10, 130, 10), range(100, 160, 10), range(130, 200, 10)
    content = "".join(lines([piece] * len(steps), steps) for piece, steps in enumerate((first, second, third)))
    run = runs.read(written(content))
    assert run.steps == list(range(10, 200, 10))
    assert run.norms == [0] * 9 + [1] * 3 + [2] * 7
    assert (run.superseded, run.other_runs) == (6, [])
    assert run.rows == len(run) + run.superseded


def test_a_resumed_run_whose_steps_the_log_rounds_keeps_its_norms(written):
    run = runs.read(written(lines([1, 2, 3, 4, 5, 6, 7], [0, 1000, 1000, 2000, 1000, 1000, 2000])))
    assert (run.steps, run.norms, run.superseded) == ([0, 1000, 1000, 2000], [1, 5, 6, 7], 3)


def test_of_a_name_that_comes_twice_in_a_line_the_first_counts(written):
    run = runs.read(written("step 1: train loss 2.5, val loss 9.0, norm 0.5\n"))
    assert (run.norms, run.losses) == ([0.5], [2.5])


def test_of_several_runs_in_a_file_the_longest_is_read(written):
    content = lines([1] * 20) + lines([2] * 30) + lines([3] * 5)
    run = runs.read(written(content))
    assert (run.norms, run.other_runs, run.superseded) == ([2] * 30, [20, 5], 0)
    printed = "".join(f"{{'grad_norm': {n}, 'epoch': {e}}}\n" for n in (1, 2) for e in (0.1, 0.2, 0.3))
    run = runs.read(written(printed))
    assert (run.norms, run.steps, run.other_runs) == ([2] * 3, [3, 4, 5], [3])


def test_steps_that_each_epoch_counts_anew_are_one_run(written):
    content = "".join(
        json.dumps({"mode": "train", "epoch": e, "iter": i, "grad_norm": e + i}) + "\n"
        for e in (1, 2, 3)
        for i in (50, 100)
    )
    run = runs.read(written(content))
    assert (len(run), run.steps, run.superseded, run.other_runs) == (6, list(range(6)), 0, [])
    assert "numbers the steps of each epoch anew" in run.notes[0]


def test_several_norms_of_a_step_are_kept_and_told(written):
    run = runs.read(written(lines([0.025, 1656.0] * 10, [s for s in range(10) for _ in range(2)])))
    assert (len(run), run.superseded) == (20, 0)
    assert "Some steps have several norms" in run.notes[0]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40))
@settings(deadline=None)
def test_no_norm_is_lost_without_being_counted(steps):
    run, series = runs.Run(), columns.Series(0, "")
    for norm, step in enumerate(steps):
        series.append(norm, {"step": step})
    runs._fill(run, series, runs.Beside(), None)
    assert len(run) + run.superseded + sum(run.other_runs) == len(steps)
    assert run.steps == sorted(run.steps)
    assert len(run) > 0


# Bad rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "norms", "bad", "first"),
    [
        (lines([1, 2]) + '{"step": 3, "grad_no', [1, 2], 1, 3),
        ('{"step": 0, "grad' + "\n" + lines([1, 2]), [1, 2], 1, 1),
        ('{"step": 1, "grad_norm": 1}\n[1, 2]\nnonsense\n' + lines([4]), [1, 4], 2, 2),
        ('{"step": 1, "grad_norm": 1}\n{"step": 2, "grad_norm": -1}\n', [1], 1, 2),
        ('{"step": 1, "grad_norm": 1}\n{"step": 2, "grad_norm": "n/a"}\n', [1], 1, 2),
        ('{"step": 1, "grad_norm": 1}\n{"step": 2, "grad_norm": true}\n', [1], 1, 2),
        ("step,grad_norm\n1,1\n2,2,2\n3\n4,4\n", [1, 4], 2, 3),
        (trainer({"step": 1, "grad_norm": 1}, {"step": 2, "grad_norm": 2})[:-30], [1], 1, 2),
        ('{"log_history": [{"step": 1, "grad_norm": 1}, {"step": 2, "grad_norm": nan}, {"step": 3}]}', [1], 1, 2),
        ("{'grad_norm': 1.0, 'epoch': 0.1}\n{'loss': 2.0, 'grad_norm': 1.", [1], 1, 2),
        ("step 1 grad_norm 1\nstep 2 grad_norm 1x\n", [1], 1, 2),
        (b'{"step": 1, "grad_norm": 1}\n{"step": 2, "grad\xff_norm": 2, \xfe}\n', [1], 1, 2),
        ('{"step": 1, "grad_norm": 1}\n' + "[" * 10_000 + "\n", [1], 1, 2),
    ],
)
def test_bad_rows_are_counted_and_the_first_is_named(written, content, norms, bad, first):
    run = runs.read(written(content))
    assert (run.norms, run.bad_rows, run.first_bad) == (norms, bad, first)


# What cannot be read --------------------------------------------------------------------------------------------------

AVERAGED = "is a mean over several steps, and hides the large norms that a threshold is there for"
REFUSED = {
    "a pointer of Git LFS": ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git lfs pull"),
    "an empty file": ("", "is empty"),
    "blanks": (" \n\n", "is empty"),
    "a log without norms": (
        '{"step": 1, "loss": 2.5}\n',
        "(JSON lines) has no norm of the gradient in its columns: step, loss. Log what the clipping function returns",
    ),
    "a Trainer's state without norms": (trainer({"step": 1, "loss": 2}), "(Trainer state) has no norm of the gradient"),
    "a Trainer's state without rows": (trainer(), "has no norm of the gradient in its columns: none"),
    "text without norms": ("epoch 1 loss 2.5\n", "has a norm of the gradient, as grad_norm or gnorm"),
    "only names": ("step,grad_norm\n", "has no norm of the gradient"),
    "no row is whole": ("step,grad_norm\n1,x\n2,y\n", "no row of"),
    "a mean by its name": ("epoch,grad_norm_avg\n1,0.5\n", f"the only norm 'grad_norm_avg' {AVERAGED}"),
    "Lightning's mean of an epoch": ("epoch,step,grad_2.0_norm_total_epoch\n1,9,0.5\n", AVERAGED),
    "clipped by its name": ('{"step": 1, "grad_norm_after_clip": 0.5}\n', "is measured after clipping"),
    "two that could be meant": (
        '{"step": 1, "actor/grad_norm": 0.5, "critic/grad_norm": 0.75}\n',
        "could be the norm: 'actor/grad_norm' (1 numbers), 'critic/grad_norm' (1 numbers). Name one with key=",
    ),
    "W&B's summary": ('{"train/grad_norm": 0.5, "_step": 100, "_wandb": {"runtime": 9}}\n', "the summary of a run"),
    "a compressed log": (b"\x1f\x8b\x08\x00rest", "is compressed"),
    "a binary file": (b"\x93NUMPY\x00\x01", "is a binary file of no kind known here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_tells_nothing_is_refused_in_a_sentence(written, case):
    content, message = REFUSED[case]
    path = written(content)
    with pytest.raises(runs.LogError, match=re.escape(message)) as refused:
        runs.read(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_espnets_percentage_is_not_taken_for_a_threshold(logs):
    with pytest.raises(runs.LogError, match=r"percentage of steps that were clipped, 100\.000 in the last line"):
        runs.read(logs / "espnet.txt")


def test_a_folder_names_its_files_and_a_missing_file_is_the_systems_error(logs):
    with pytest.raises(runs.LogError, match=r"is a folder; name one of its files: espnet\.txt, fairseq"):
        runs.read(logs)
    with pytest.raises(FileNotFoundError):
        runs.read(logs / "none")


@pytest.mark.parametrize(
    ("content", "key", "norms"),
    [
        ('{"step": 1, "actor/grad_norm": 0.5, "critic/grad_norm": 0.75}\n', "critic/grad_norm", [0.75]),
        ("epoch,grad_norm_avg\n1,0.5\n", "grad_norm_avg", [0.5]),
        ("step,sizes\n1,0.5\n", "sizes", [0.5]),
        ("step 1 magnitude: 0.5\n", "magnitude", [0.5]),
        ("{'grad_norm': 9, 'mine': 0.5}\n", "mine", [0.5]),
    ],
)
def test_the_key_names_the_column(written, content, key, norms):
    run = runs.read(written(content), key=key)
    assert (run.norms, run.key) == (norms, key)
    assert bool(run.averaged) == (key == "grad_norm_avg")


@pytest.mark.parametrize("content", ['{"step": 1, "grad_norm": 1}\n', "step 1 grad_norm 1\n", "step,grad_norm\n1,1\n"])
def test_a_key_that_is_not_there_is_said(written, content):
    with pytest.raises(runs.LogError, match=r"has (no )?'size'"):
        runs.read(written(content), key="size")


# Streams --------------------------------------------------------------------------------------------------------------


@given(
    rows=st.lists(
        st.fixed_dictionaries({"step": st.integers(), "a": st.text(), "b": st.floats(), "c": st.lists(st.none())})
    ),
    chunk=st.integers(1, 60),
)
@settings(deadline=None, max_examples=60)
def test_an_array_is_read_alike_whatever_the_chunks(tmp_path_factory, rows, chunk):
    path = tmp_path_factory.mktemp("json") / "state.json"
    path.write_text(json.dumps({"before": 1, "log_history": rows, "after": 2}, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", chunk)
        found = list(streams.items(path, re.compile(r'"log_history"\s*:\s*\[')))
    assert str(found) == str(list(enumerate(rows, 1)))


def test_memory_is_bounded_by_the_norms_not_by_the_file(written):
    """25 MB of which 2000 norms are kept; a row is 12 kB, a chunk 1 MB."""
    rows = ({"step": s, "grad_norm": 0.5, "text": "x" * 12_000} for s in range(2000))
    path = written('{"log_history": [' + ", ".join(map(json.dumps, rows)) + "]}")
    tracemalloc.start()
    try:
        assert len(runs.read(path)) == 2000
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()


def test_a_line_without_end_is_one_bad_row(written, monkeypatch):
    monkeypatch.setattr(streams, "LONGEST", 1000)
    run = runs.read(written(lines([1]) + '{"text": "' + "x" * 5000 + '"}\n' + lines([2], [2])))
    assert (run.norms, run.bad_rows, run.first_bad) == ([1, 2], 1, 2)
    entries = ", ".join(['{"step": 1, "grad_norm": 1}', '{"text": "' + "x" * 5000, '"}'])
    monkeypatch.setattr(streams, "CHUNK", 100)
    assert (runs.read(written(f"[{entries}]")).bad_rows, runs.read(written(f"[{entries}]")).norms) == (1, [1])


def test_progress_is_shown_on_a_terminal_and_for_large_files_only(written, monkeypatch, capsys):
    def read():
        for _ in streams.lines(path):
            pass
        return capsys.readouterr().err

    path = written("a line\n" * 50_000, "long.txt")
    assert read() == ""
    monkeypatch.setattr(streams, "LARGE", 1000)
    assert read() == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = read()
    assert re.search(r"\rlong\.txt: █+ +\d+% of 0 MB", shown)
    assert not shown.split("\r")[-2].strip()  # wiped away at the end


def test_reading_asks_for_no_framework(logs):
    """No module of a framework is imported by the reader itself, nor tensorboard for other files."""
    before = set(sys.modules)
    runs.read(logs / "table.csv")
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert new & {"torch", "tensorflow", "jax", "pandas", "matplotlib"} == set()


def test_names_that_are_norms_and_names_that_are_not():
    norms = (
        "grad_norm gnorm grad_gnorm gradient_norm grad_2.0_norm_total global_grad_norm grad_norm_total gradnorm grdn"
    )
    others = (
        "max_grad_norm grad_norm_clip weight_norm grad_clip norm_type layer_norm grad_2.0_norm/0.weight grad_norm_max"
    )
    assert [name for name in norms.split() if not columns.is_norm(name)] == []
    assert [name for name in others.split() if columns.is_norm(name)] == []
    assert columns.misleading("unclipped_grad_norm") == ""
    assert "after clipping" in columns.misleading("clipped_grad_norm")


def test_numbers_as_logs_write_them():
    values = SimpleNamespace(**{"1K": 1000.0, "2.5M": 2.5e6, "10/438": 10.0, "7": 7.0})
    assert {text: columns.number(text, "step") for text in vars(values)} == vars(values)
    assert [columns.number(x, "norm") for x in (True, None, "x", "1K", [1])] == [None] * 5
