"""Names in a log: which one is the norm, and which ones the step, the loss and the learning rate beside it."""

import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

# A gradient's norm, by the last part of its name: grad_norm, gnorm, grad_2.0_norm_total, grad_gnorm, global_grad_norm …
NORM = re.compile(
    r"(?:(?:total|global|unclipped|raw|model|pre_?clip)_)*(?:g|grads?|gradients?)_?(?:l2_|\d+(?:\.\d+)?_)?"
    r"(?:total_|global_)?g?norms?(?:_(?:total|global|l2|step|unclipped|pre_?clip(?:ping)?|before_clip(?:ping)?))*"
    r"|grdn|(?:total_|global_)?norm"
)
# Norms by their names that a threshold cannot be judged by.
MISLEADING = {
    "is a mean over several steps, and hides the large norms that a threshold is there for": re.compile(
        r"_?(?:avg|averaged?|mean|ema|smoothed|epoch)_?"
    ),
    "is measured after clipping, and never shows how large the norms were": re.compile(
        r"_?(?:(?<!un)clipped|(?:post|after)_?clip(?:ping|ped)?)_?"
    ),
}
# Other columns by their names, the likeliest first.
OTHERS = {
    "step": "step global_step _step iteration iter num_updates update updates training_iteration trainer_step "
    "global_step/max_steps steps",
    "epoch": "epoch epch ep",
    "loss": "loss lm_loss train_loss train_loss_step loss_train loss_step total_loss training_loss policy_loss",
    "learning_rate": "learning_rate cur_lr lr base_lr optim0_lr0",
    "max_norm": "max_norm max_grad_norm grad_clip clip_grad clip_norm",
    "loss_scale": "loss_scale grad_scale",
    "skipped": "number_of_skipped_iterations skipped_steps",
}
RANKS = {name: (role, rank) for role, names in OTHERS.items() for rank, name in enumerate(names.split())}
EVALUATION = re.compile(r"(?:^|[/_])(?:eval|evaluation|val|valid|validation|test|dev)(?:[/_]|$)")


class Series:
    """The norms of one column, and what the log has beside them: eight bytes a number, and none for what it lacks."""

    def __init__(self, rank: int, averaged: str) -> None:
        self.rank, self.averaged = rank, averaged  # why a threshold cannot be judged by it, where its name says so
        self.norms = array("d")
        self.beside: dict[str, array[float]] = {}

    def append(self, norm: float, others: Mapping[str, float]) -> None:
        """Add a norm, and what stands beside it."""
        self.norms.append(norm)
        for role, values in self.beside.items():
            values.append(others.get(role, nan))
        for role in others:
            if role not in self.beside:
                self.beside[role] = array("d", [nan]) * len(self.norms)
                self.beside[role][-1] = others[role]

    def __len__(self) -> int:
        return len(self.norms)


@dataclass
class Columns:
    """The rows of a log, by the columns that could be the norm: `key`, or any that has the name of one."""

    key: str | None = None
    series: dict[str, Series] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)  # in the order of the log
    without: int = 0  # rows that have no norm
    skipped: int = 0
    _roles: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    _alone: dict[str, tuple[float, float]] = field(default_factory=dict)  # what stood in rows of its own: step, value

    def add(self, row: Mapping[str, Any]) -> bool:
        """Take a row, and say whether every norm in it is one."""
        norms, others, ranks = [], dict[str, float](), dict[str, int]()
        whole = True
        for name, text in row.items():
            role, rank, _ = self._roles.get(name) or self._learn(name)
            if not role or text is None or text == "" or rank >= ranks.get(role, 1000):
                continue
            value = text if type(text) is float else number(text, role)
            if role == "norm":
                if value is None or value < 0:
                    whole = False
                else:
                    norms.append((name, value))
            elif value is not None:
                others[role], ranks[role] = value, rank
        if "skipped" in others:
            self.skipped += int(others.pop("skipped"))
        if norms:
            self._complete(others)
        elif whole:
            self.without += 1
            self._keep(others)
        for name, value in norms:
            if name not in self.series:
                self.series[name] = Series(*self._roles[name][1:])
            self.series[name].append(value, others)
        return whole

    # CSV and TensorBoard write each metric in a row of its own: rows of the same step belong together.

    def _complete(self, others: dict[str, float]) -> None:
        """Add to a row with a norm what other rows have said of its step."""
        for role, (step, value) in self._alone.items():
            if step == others.get("step"):
                others.setdefault(role, value)

    def _keep(self, others: dict[str, float]) -> None:
        """Add what a row without a norm says to the norms of its step, before it and after it."""
        step = others.pop("step", None)
        if step is None:
            return
        for role, value in others.items():
            self._alone[role] = step, value
            for series in self.series.values():
                if "step" in series.beside and series.beside["step"][-1] == step:
                    values = series.beside.setdefault(role, array("d", [nan]) * len(series))
                    if isnan(values[-1]):
                        values[-1] = value

    def _learn(self, name: str) -> tuple[str, int, str]:
        role = self._roles[name] = self._role(name)
        self.names[name] = None
        return role

    def _role(self, name: str) -> tuple[str, int, str]:
        """What a column is, how likely (0 most), and for a norm, why it would mislead."""
        if name == self.key:
            return "norm", 0, misleading(name)
        plain = name.strip().lower().rpartition(" - ")[2]  # W&B's tables put the run before the name
        plain = re.sub(r"[\s-]+", "_", plain)
        plain = re.sub(r"^(?:train|training|trainer)[/_](?!loss$|loss_step$)", "", plain)
        last = re.split(r"/|\.(?=[a-z])", plain)[-1]
        if EVALUATION.search(plain):
            return "", 0, ""
        for rank, part in enumerate((plain, last)):
            if part in RANKS or part.startswith("lr_"):  # lr-AdamW, as Lightning's monitor writes it
                role, place = RANKS.get(part, ("learning_rate", 50))
                return role, 100 * rank + place, ""
            if self.key is None and is_norm(part):
                # "norm" alone says least, a name within a group less than one that stands alone
                return "norm", rank + 2 * (part == "norm"), misleading(part)
        return "", 0, ""


def is_norm(part: str) -> bool:
    """Whether this is the name of a gradient's norm, be it averaged or measured after clipping."""
    stripped = part
    for pattern in MISLEADING.values():
        stripped = pattern.sub("_", stripped).strip("_")
    return NORM.fullmatch(part) is not None or (stripped != part and NORM.fullmatch(stripped) is not None)


def misleading(part: str) -> str:
    """Why a norm of this name tells little, if it does."""
    return next((why for why, pattern in MISLEADING.items() if pattern.search(part.lower())), "")


def number(text: Any, role: str) -> float | None:
    """The number that a log writes: 0.5, "3.62E-06", NaN; for a step, "1K" and "10/438" too."""
    if isinstance(text, bool):
        return None
    if isinstance(text, str):
        text = text.strip()
        if role == "step":
            text = text.partition("/")[0]
            factor = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:])
            if factor:
                value = number(text[:-1], "")
                return value and value * factor
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def flat(nested: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The entries of nested dicts, each by its path, as ``info/learner/grad_gnorm``."""
    if not path and dict not in map(type, nested.values()):
        return dict(nested)
    found = dict[str, Any]()
    for name, value in nested.items():
        if isinstance(value, dict):
            found |= flat(value, f"{path}{name}/")
        else:
            found[f"{path}{name}"] = value
    return found
