"""The rules by which a run is judged, in one table: when each applies, what it says, why, and how sure it is."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isnan
from typing import Literal, NamedTuple

from .facts import BEFORE, SPIKE, Facts

PLAYBOOK = "Godbole, Dahl, Gilmer, Shallue and Nado, Deep learning tuning playbook, 2023"
PUBLIC = "68 public runs, gathered in November 2026, mostly fine-tunes by hobbyists"
ADAM = "Kingma and Ba, Adam, ICLR 2015, section 2.1"
CONVENTION = "a convention of this report"

FEW = 20
NET, BRAKE, NORMALISER = 0.1, 0.5, 0.9


@dataclass(frozen=True)
class Rule:
    """One rule. `says` and `advice` are sentences with the run's numbers in them; `reason` and `source` are general.

    A rule about the log that finds it wrong silences the others, for they would judge numbers that are not the norms.
    """

    name: str
    about: Literal["log", "threshold", "run"]
    level: Literal["wrong", "warning", "note", "good"]
    when: Callable[[Facts], bool]
    says: Callable[[Facts], str]
    advice: Callable[[Facts], str]
    reason: str
    source: str
    evidence: Literal["strong", "moderate", "thin"]


class Finding(NamedTuple):
    """A rule that applies to a run, in words."""

    name: str
    about: str
    level: str
    says: str
    advice: str
    reason: str
    source: str
    evidence: str


def number(x: float) -> str:
    """Three digits: 0.35, 67.6, 17200, 3.4e+06."""
    return f"{float(f'{x:.3g}'):.0f}" if 100 <= abs(x) < 1e6 else f"{x:.3g}"


def percent(share: float) -> str:
    """A share in whole percent, never rounded to none or all."""
    if 0 < share < 0.01 or 0.99 < share < 1:
        return "less than 1%" if share < 0.5 else "more than 99%"
    return f"{share:.0%}"


def family(optimizer: str) -> str:
    """Whether an optimizer divides by the size of past gradients ("adam"), follows them ("sgd"), or is another ("")."""
    adaptive = ("adam", "lamb", "lion", "adafactor", "rmsprop", "adagrad", "muon", "sophia", "shampoo")
    return "adam" if any(name in optimizer for name in adaptive) else "sgd" if "sgd" in optimizer else ""


def _by_optimizer(facts: Facts, adam: str, sgd: str) -> str:
    known = family(facts.optimizer)
    return {"adam": adam, "sgd": sgd}.get(known) or f"{adam} {sgd}"


def _set_length(f: Facts) -> str:
    return _by_optimizer(
        f,
        "With Adam and its kin, which divide by the size of past gradients, a factor common to most steps matters "
        f"little; to let the threshold act on exceptions only, try {number(f.quantile(0.1))}, which clips one norm in "
        "ten, and compare the validation loss.",
        "With SGD, learning rate × threshold is then the length of most steps: tune it as you would tune the learning "
        f"rate, or raise the threshold to {number(f.quantile(0.1))} and lower the learning rate by about "
        f"{number(max(1.0, f.quantile(0.5) / f.max_norm))}×.",
    )


def _after_spikes(f: Facts) -> str:
    rose, of = f.rose
    if not of:
        return "The log has no losses around them, so what they did is not known."
    if of < 10:
        return f"After {rose} of {of} the loss was higher than before: too few to say more."
    told = f"After {rose} of {of} the loss was higher than before; after any step it is in {percent(f.base_rate)}."
    return f"{told} That is {'more often than' if f.rose_by_chance < 0.01 else 'no more often than'} chance gives."


def _less_and_less(f: Facts) -> str:
    first, last = f.clip_thirds
    if first == last:
        return ""
    return (
        f"The threshold clipped {percent(first)} in the first third and {percent(last)} in the last. If late spikes "
        "matter, let it follow the norm (gradclip.thresholds)."
    )


def _unscaled(f: Facts) -> bool:
    return f.follows_scale or (f.scale >= 1024 and f.median >= 1000)


def _threshold(f: Facts) -> str:
    said = {"log": ", which the log names,", "assumed": ", assumed here since most trainers have it,"}
    moving = ", a median of" if f.limits.min() != f.limits.max() else ""
    return f"The threshold{moving} {number(f.max_norm)}{said.get(f.run.max_norm_source, ',' if moving else '')}"


def _clips(f: Facts, above: float, at_most: float) -> bool:
    return f.max_norm > 0 and above < f.clip_fraction <= at_most


RULES: tuple[Rule, ...] = (
    # The log --------------------------------------------------------------------------------------------------------
    Rule(
        "all zero",
        "log",
        "wrong",
        lambda f: f.zeros == 1,
        lambda f: f"Every one of the {f.norms.size} norms is 0: this column was never filled.",
        lambda f: (
            "Log the norm that the clipping function returns. Under DeepSpeed, ask its engine, by "
            "engine.get_global_grad_norm(), after the step."
        ),
        "A run that learns has gradients. The same run with DeepSpeed off logged norms of 68.",
        PUBLIC,
        "strong",
    ),
    Rule(
        "after clipping",
        "log",
        "wrong",
        lambda f: f.zeros < 1 and f.at_top > 0,
        lambda f: (
            f"{percent(f.at_top)} of the norms equal the largest, {number(f.largest)}: they were measured after "
            f"clipping to {number(f.largest)}."
        ),
        lambda f: (
            "Log the norm from before clipping; the clipping functions of PyTorch, TensorFlow and "
            "gradclip return it. Until then, only this much is known: at least "
            f"{percent(f.at_top)} of these steps were clipped."
        ),
        "Norms before clipping thin out towards their largest; after clipping, all that were above the threshold "
        "equal it. 11 of 68 public logs are like that.",
        PUBLIC,
        "strong",
    ),
    Rule(
        "not unscaled",
        "log",
        "wrong",
        _unscaled,
        lambda f: (
            (
                "The norm follows the loss scale: it was measured before the gradients were unscaled."
                if f.follows_scale
                else f"With a median of {number(f.median)} at a loss scale of {f.scale:.0f}, the norm was probably "
                "measured before the gradients were unscaled."
            )
            + f" Divided by the scale, the median is about {number(f.median / f.scale)}."
        ),
        lambda f: (
            "Unscale first (scaler.unscale_(optimizer) in PyTorch), then measure and clip: a threshold compared "
            "with scaled gradients clips every step."
        ),
        "The norm of scaled gradients is a power of two times too large, and jumps with the scale: 17225 at 131072 in "
        "one public run was 0.131.",
        f"Micikevicius et al., Mixed precision training, ICLR 2018; {PUBLIC}",
        "moderate",
    ),
    Rule(
        "very large",
        "log",
        "warning",
        lambda f: isnan(f.scale) and f.median >= 1000 and not _unscaled(f),
        lambda f: (
            f"The median norm is {number(f.median)}. That is rare, and often a loss scale that was not divided "
            f"out (by 65536, the usual first scale, it would be {number(f.median / 65536)}), or a loss summed rather "
            "than averaged over the batch."
        ),
        lambda f: "Check that the norm is measured after unscaling, and that the loss is a mean.",
        "Of 55 public runs, the median norm of all but one is below 20.",
        PUBLIC,
        "thin",
    ),
    Rule(
        "averaged",
        "log",
        "warning",
        lambda f: bool(f.run.averaged),
        lambda f: f"Each number is a mean, not the norm of a step: {f.run.averaged}.",
        lambda f: "Read the shares below as rough. A mean hides spikes: one norm of 100 among nine of 1 shows as 11.",
        "A threshold is compared with the norm of each step.",
        "arithmetic",
        "strong",
    ),
    Rule(
        "too few",
        "log",
        "warning",
        lambda f: f.norms.size < FEW,
        lambda f: (
            f"{counted(f.norms.size, 'norm')} {'is' if f.norms.size == 1 else 'are'} too few to judge a threshold by."
        ),
        lambda f: "Log every step, or wait.",
        f"Of {FEW} norms, the 95th percentile rests on the largest alone.",
        CONVENTION,
        "strong",
    ),
    Rule(
        "sparse",
        "log",
        "note",
        lambda f: f.interval > 1 and not f.run.averaged,
        lambda f: (
            f"One norm in {f.interval} steps is logged: shares are estimates, and what happens between is unseen."
        ),
        lambda f: "Log the norm of every step while you look for spikes.",
        "A spike lasts a step or two.",
        "arithmetic",
        "strong",
    ),
    Rule(
        "bfloat16",
        "log",
        "note",
        lambda f: f.bfloat16,
        lambda f: "The norms were rounded to bfloat16: they move in steps of 0.4% to 0.8%.",
        lambda f: (
            "That is harmless for choosing a threshold; sum the squares in float32 (gradclip does) if equal "
            "norms surprise you."
        ),
        "bfloat16 has 8 significant bits.",
        "Kalamkar et al., A study of BFLOAT16 for deep learning training, 2019",
        "strong",
    ),
    Rule(
        "resumed",
        "log",
        "note",
        lambda f: f.run.superseded > 0,
        lambda f: (
            f"The log holds pieces that overlap, as of a run resumed from a checkpoint: "
            f"{counted(f.run.superseded, 'norm')} of steps logged again later {_was(f.run.superseded)} left out."
        ),
        lambda f: "",
        "The later piece is the one that the model was trained by.",
        CONVENTION,
        "strong",
    ),
    Rule(
        "several runs",
        "log",
        "warning",
        lambda f: bool(f.run.other_runs),
        lambda f: (
            f"The steps start over: this file holds {len(f.run.other_runs) + 1} runs. The longest is judged here; "
            f"left out: {', '.join(counted(n, 'norm') for n in f.run.other_runs[:5])}"
            f"{' …' if len(f.run.other_runs) > 5 else ''}."
        ),
        lambda f: "To see another, give it a file of its own.",
        "Norms of two runs in one picture tell of neither.",
        CONVENTION,
        "strong",
    ),
    Rule(
        "bad rows",
        "log",
        "warning",
        lambda f: f.run.bad_rows > 0,
        lambda f: f"{counted(f.run.bad_rows, 'row')} could not be read, the first at {f.run.first_bad}.",
        lambda f: "A last row is cut off while its run goes on, or where it was killed; look at any other.",
        "What is left out of a report should be known.",
        CONVENTION,
        "strong",
    ),
    # The run --------------------------------------------------------------------------------------------------------
    Rule(
        "lost",
        "run",
        "wrong",
        lambda f: f.lost_from is not None,
        lambda f: f"From step {f.lost_from} on, no norm is finite: the run was lost there.",
        lambda f: (
            'Go back to a checkpoint from before that step, and find the arrays with nonfinite="raise". '
            "Clipping cannot mend it, since a norm that is not finite has no direction to keep."
        ),
        "NaN in the weights stays, whatever the gradients are.",
        "IEEE 754",
        "strong",
    ),
    Rule(
        "not finite",
        "run",
        "warning",
        lambda f: f.lost_from is None and not f.finite.all() and isnan(f.scale),
        lambda f: (
            f"{counted(f.count - f.norms.size, 'norm')} {_was(f.count - f.norms.size)} not finite, the first at "
            f"step {f.steps[~f.finite][0]}; the run went on."
        ),
        lambda f: (
            'See which arrays they come from (nonfinite="raise"), or skip such steps (nonfinite="zero"): with '
            "PyTorch's own clip_grad_norm_, one NaN makes every gradient NaN."
        ),
        "Such a step has no direction, so no threshold helps.",
        "rule 6 of this package's contract",
        "strong",
    ),
    Rule(
        "overflows",
        "run",
        "note",
        lambda f: f.run.skipped > 0 or (f.lost_from is None and not f.finite.all() and not isnan(f.scale)),
        lambda f: (
            f"{counted(max(f.run.skipped, f.count - f.norms.size), 'step')} overflowed and "
            f"{_was(max(f.run.skipped, f.count - f.norms.size))} skipped, as a dynamic loss scale does now and then."
        ),
        lambda f: "",
        "The scale is raised until gradients overflow, then halved.",
        "Micikevicius et al., Mixed precision training, ICLR 2018",
        "strong",
    ),
    Rule(
        "some zeros",
        "run",
        "note",
        lambda f: 0.01 < f.zeros < 1,
        lambda f: f"{percent(f.zeros)} of the norms are 0: steps without any gradient.",
        lambda f: (
            "In GRPO these are groups whose rewards are all equal, and they pull the quantiles down; elsewhere, "
            "look for steps that trained nothing."
        ),
        "In one public GRPO run it is 14%.",
        PUBLIC,
        "moderate",
    ),
    # The threshold --------------------------------------------------------------------------------------------------
    Rule(
        "no threshold",
        "threshold",
        "note",
        lambda f: f.max_norm == inf,
        lambda f: "No threshold was set: nothing was clipped.",
        lambda f: f"{number(f.quantile(0.1))}, the 90th percentile of these norms, is a start.",
        "The playbook sets the threshold by that percentile.",
        PLAYBOOK,
        "moderate",
    ),
    Rule(
        "threshold 0",
        "threshold",
        "warning",
        lambda f: f.max_norm == 0,
        lambda f: "A threshold of 0 makes every gradient 0.",
        lambda f: "If it was to mean no clipping, as in some trainers, give inf here.",
        "The trainers of Hugging Face, Megatron-LM and fairseq take 0 for no threshold; a clipping function does not.",
        "rule 5 of this package's contract",
        "strong",
    ),
    Rule(
        "never clips",
        "threshold",
        "good",
        lambda f: 0 < f.max_norm < inf and f.clip_fraction == 0,
        lambda f: (
            f"{_threshold(f)} never clips: the largest norm is {number(f.largest)}. It is a safety net that was "
            "not needed."
        ),
        lambda f: (
            "Leave it: it costs nothing and waits for a bad batch. Only if the loss spikes, lower it to about "
            f"{number(f.quantile(0.01))}."
        ),
        "A threshold above all norms leaves every gradient as it is.",
        "rule 1 of this package's contract",
        "strong",
    ),
    Rule(
        "safety net",
        "threshold",
        "good",
        lambda f: _clips(f, 0, NET),
        lambda f: (
            f"{_threshold(f)} clips {percent(f.clip_fraction)} of the norms, by a median factor of "
            f"{number(f.factor)}: a safety net that acts on exceptions."
        ),
        lambda f: "Leave it.",
        "The playbook aims at clipping the highest tenth.",
        PLAYBOOK,
        "moderate",
    ),
    Rule(
        "brake",
        "threshold",
        "note",
        lambda f: _clips(f, NET, BRAKE),
        lambda f: (
            f"{_threshold(f)} clips {percent(f.clip_fraction)} of the norms, by a median factor of "
            f"{number(f.factor)}: a brake that acts often, and changes how fast the run learns."
        ),
        lambda f: f"If the run is stable, compare one with {number(f.quantile(0.1))}, which clips one norm in ten.",
        "The playbook aims at the highest tenth, and warns above one half. In between, nothing is known to be wrong.",
        PLAYBOOK,
        "thin",
    ),
    Rule(
        "strong brake",
        "threshold",
        "warning",
        lambda f: _clips(f, BRAKE, NORMALISER),
        lambda f: (
            f"{_threshold(f)} clips {percent(f.clip_fraction)} of the norms, by a median factor of "
            f"{number(f.factor)}: more than half, so that it sets the length of most gradients."
        ),
        _set_length,
        "Where more than half of the steps are clipped, the playbook lowers the learning rate instead. Adam cancels a "
        "factor that all gradients share, so for it this matters less.",
        f"{PLAYBOOK}; {ADAM}",
        "moderate",
    ),
    Rule(
        "normaliser",
        "threshold",
        "warning",
        lambda f: _clips(f, NORMALISER, 1),
        lambda f: (
            f"{_threshold(f)} clips {percent(f.clip_fraction)} of the norms, by a median factor of "
            f"{number(f.factor)}: a normaliser. Nearly every step has the same length before the optimizer sees it."
        ),
        _set_length,
        "That need not be wrong: in 15 of 43 public runs with a Trainer the default 1.0 does it. But it is then no "
        "safety net: a spike is cut to the same length as any other step.",
        f"{PUBLIC}; {PLAYBOOK}; {ADAM}",
        "moderate",
    ),
    # How it moves ---------------------------------------------------------------------------------------------------
    Rule(
        "rises with the loss",
        "run",
        "warning",
        lambda f: f.drift is not None and f.drift[1] > f.drift[0] and f.loss_drift > 0,
        lambda f: f"{_moved(f)} and the loss rose with it: the run may be diverging.",
        lambda f: "Lower the learning rate, or warm up longer; a threshold only slows this down.",
        "Norm and loss that rise together are what divergence looks like from here; a change of data looks the same.",
        PLAYBOOK,
        "thin",
    ),
    Rule(
        "rises",
        "run",
        "note",
        lambda f: f.drift is not None and f.drift[1] > f.drift[0] and not f.loss_drift > 0,
        lambda f: f"{_moved(f)}{' while the loss fell' if f.loss_drift < 0 else ''}. That alone is not divergence.",
        lambda f: (
            f"Only the clip fraction moves: {percent(f.clip_thirds[0])} in the first third, "
            f"{percent(f.clip_thirds[1])} in the last."
        ),
        "In 8 of 11 public runs whose norm rose by more than a fifth, the loss fell.",
        PUBLIC,
        "thin",
    ),
    Rule(
        "falls",
        "run",
        "note",
        lambda f: f.drift is not None and f.drift[1] < f.drift[0],
        lambda f: f"{_moved(f)}, as in most runs.",
        _less_and_less,
        "The norm falls by more than a fifth in 30 of 54 public runs.",
        PUBLIC,
        "moderate",
    ),
    Rule(
        "spikes",
        "run",
        "note",
        lambda f: bool(f.spikes),
        lambda f: (
            f"{counted(len(f.spikes), 'spike')} (a norm above {SPIKE:.0f}× the median of the {BEFORE} before). "
            f"{_after_spikes(f)}"
        ),
        lambda f: (
            "Look at the batches of the largest."
            if f.rose_by_chance >= 0.01
            else f"A threshold near {number(f.quantile(0.05))} would have cut the largest twentieth of the norms."
        ),
        "Most spikes pass: in 15 public runs the loss was higher after 18% of 315 spikes, and after 14% of all steps. "
        "Most of these came from three runs, so little follows for pretraining.",
        PUBLIC,
        "thin",
    ),
    Rule(
        "largest first",
        "run",
        "note",
        lambda f: f.norms.size >= FEW and not f.drift and f.largest_at < 0.1 and f.largest > 3 * f.median > 0,
        lambda f: f"The largest norm, {number(f.largest)}, falls in the first tenth of the run, as it often does.",
        lambda f: "Choose the threshold by what comes after the warm-up.",
        "So it is in 25 of 55 public runs.",
        PUBLIC,
        "moderate",
    ),
)


def counted(count: int, what: str) -> str:
    """A number of things: 1 norm, 2 norms."""
    return f"{count} {what}{'s' * (count != 1)}"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _moved(f: Facts) -> str:
    assert f.drift is not None
    first, last = f.drift
    verb = "rose" if last > first else "fell"
    return f"The norm {verb}, from a median of {number(first)} in the first third to {number(last)} in the last"


def _order(one: Finding) -> int:
    """What is wrong comes first, then what to bear in mind, the threshold, the run, and small things about the log."""
    if one.level == "wrong":
        return 0
    if one.about == "log":
        return 1 if one.level == "warning" else 5
    return 2 if one.about == "threshold" else 3 if one.level == "warning" else 4


def judge(facts: Facts) -> list[Finding]:
    """What the rules say of a run, what matters most first."""
    found: list[Finding] = []
    for rule in RULES:
        lying = any(one.about == "log" and one.level == "wrong" for one in found)
        if (lying and rule.about != "log") or (not facts.norms.size and rule.name != "lost") or not rule.when(facts):
            continue
        says, advice = rule.says(facts), rule.advice(facts)
        found.append(Finding(rule.name, rule.about, rule.level, says, advice, rule.reason, rule.source, rule.evidence))
    return sorted(found, key=_order)
