"""The numbers of a run that the verdict's rules ask for."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import exp, inf, lgamma, log, log1p, nan
from typing import Any, NamedTuple

import numpy as np

from ..history import trend
from ..runs import Run

# A spike is above five times the median of the 20 norms before it; the 5 losses after it are compared with 20 before.
BEFORE, AFTER, SPIKE = 20, 5, 5.0


class Spike(NamedTuple):
    """A norm far above those before it."""

    step: int
    norm: float
    factor: float  # of the median before
    loss_rose: bool | None  # None where the log has too few losses around it


@dataclass
class Facts:
    """The numbers of a run, each worked out when a rule asks for it. Quantiles and the like are of the finite norms."""

    run: Run
    optimizer: str = ""

    def __post_init__(self) -> None:
        self.optimizer = (self.optimizer or self.run.optimizer).lower()
        self.all = np.array(self.run.norms)
        self.limits = np.array(self.run.max_norms)
        self.finite = np.isfinite(self.all)
        self.norms = self.all[self.finite]
        self.steps = np.array(self.run.steps)
        self.count = len(self.all)

    # The norms ----------------------------------------------------------------------------------------------------

    def quantile(self, share: float) -> float:
        """The threshold that this share of the finite norms lies above."""
        return float(np.quantile(self.norms, 1 - share)) if self.norms.size else nan

    @cached_property
    def median(self) -> float:
        """The norm in the middle."""
        return self.quantile(0.5)

    @cached_property
    def largest(self) -> float:
        """The largest norm that is finite."""
        return self.quantile(0.0)

    @cached_property
    def largest_at(self) -> float:
        """Where in the run the largest norm is, from 0 to 1."""
        return int(np.argmax(self.norms)) / max(1, len(self.norms) - 1)

    @cached_property
    def zeros(self) -> float:
        """The share of norms that are 0."""
        return float(np.mean(self.norms == 0)) if self.norms.size else 0.0

    @cached_property
    def lost_from(self) -> int | None:
        """The step from which on no norm was finite, if that is so at the end, for at least three norms."""
        last = np.flatnonzero(self.finite)[-1] if self.finite.any() else -1
        return int(self.steps[last + 1]) if self.count - last - 1 >= 3 else None

    @cached_property
    def interval(self) -> int:
        """How many steps lie between two norms."""
        gaps = np.diff(self.steps)
        return int(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 1

    # The threshold ------------------------------------------------------------------------------------------------

    @cached_property
    def max_norm(self) -> float:
        """The threshold, or the median of those that move."""
        return float(np.median(self.limits)) if self.count else inf

    @cached_property
    def clipped(self) -> Any:
        """Which steps were clipped."""
        return self.all > self.limits

    @cached_property
    def clip_fraction(self) -> float:
        """The share of the finite norms that were clipped."""
        return float(np.mean(self.clipped[self.finite])) if self.norms.size else 0.0

    @cached_property
    def factor(self) -> float:
        """By how much the clipped norms were divided: the median."""
        where = self.clipped & self.finite & (self.limits > 0)
        return float(np.median(self.all[where] / self.limits[where])) if where.any() else nan

    @cached_property
    def clip_thirds(self) -> tuple[float, float]:
        """The share of clipped steps in the first and the last third."""
        third = max(1, self.count // 3)
        return float(np.mean(self.clipped[:third])), float(np.mean(self.clipped[-third:]))

    # How they move ------------------------------------------------------------------------------------------------

    @cached_property
    def drift(self) -> tuple[float, float] | None:
        """The medians of the first and the last third, where the norm rose or fell."""
        return trend(self.norms)

    @cached_property
    def loss_drift(self) -> float:
        """The median loss of the last third less that of the first; NaN where the log has too few losses."""
        losses = self._losses[np.isfinite(self._losses)]
        third = len(losses) // 3
        return float(np.median(losses[-third:]) - np.median(losses[:third])) if third > 2 else nan

    @cached_property
    def spikes(self) -> list[Spike]:
        """The norms far above those before them."""
        norms, steps, found = self.norms, self.steps[self.finite], []
        # 100,000 windows at a time: all at once would take 20 times the memory of the norms.
        for start in range(BEFORE, len(norms), 100_000):
            part = norms[start - BEFORE : start + 100_000]
            medians = np.median(np.lib.stride_tricks.sliding_window_view(part, BEFORE)[:-1], axis=1)
            high = (medians > 0) & (part[BEFORE:] > SPIKE * medians)
            for i in np.flatnonzero(high):
                at, norm = start + int(i), float(part[BEFORE + i])
                found.append(Spike(int(steps[at]), norm, norm / float(medians[i]), self._rose(at)))
        return found

    @cached_property
    def base_rate(self) -> float:
        """How often the loss rises, by the same measure, after any step; of 5000 of them where there are more."""
        places = np.unique(np.linspace(BEFORE, max(BEFORE, len(self.norms) - AFTER - 1), 5000).astype(int))
        rose = [self._rose(at) for at in places.tolist()]
        known = [one for one in rose if one is not None]
        return float(np.mean(known)) if known else nan

    @cached_property
    def rose(self) -> tuple[int, int]:
        """After how many spikes the loss rose, and of how many that is known."""
        known = [spike.loss_rose for spike in self.spikes if spike.loss_rose is not None]
        return sum(known), len(known)

    @cached_property
    def rose_by_chance(self) -> float:
        """The probability that at least as many spikes would see the loss rise, at the base rate."""
        (rose, of), rate = self.rose, self.base_rate
        if not rose or not rate > 0:
            return 0.0 if rose else 1.0
        if rate == 1:
            return 1.0
        terms = (
            lgamma(of + 1) - lgamma(k + 1) - lgamma(of - k + 1) + k * log(rate) + (of - k) * log1p(-rate)
            for k in range(rose, of + 1)
        )
        return min(1.0, sum(map(exp, terms)))

    @cached_property
    def _losses(self) -> Any:
        return np.array(self.run.losses)[self.finite]

    def _rose(self, at: int) -> bool | None:
        """Whether the median of the losses after a norm is in the upper quarter of those before, or above."""
        before, after = self._losses[max(0, at - BEFORE) : at], self._losses[at + 1 : at + 1 + AFTER]
        if len(before) < BEFORE or len(after) < AFTER or np.isnan(before).any() or np.isnan(after).any():
            return None
        return bool(np.sort(after)[AFTER // 2] > np.sort(before)[BEFORE * 3 // 4])

    # What is wrong with the log -----------------------------------------------------------------------------------

    @cached_property
    def at_top(self) -> float:
        """The share of norms that all but equal the largest, where there are far more of them than just below it.

        Norms before clipping thin out towards the largest; after clipping, all that were clipped pile up there. Where
        that is the threshold itself, three are enough.
        """
        if self.norms.size < 5 or self.largest <= 0:
            return 0.0
        ratio = self.norms / self.largest
        at_limit = self.max_norm < inf and abs(self.largest / self.max_norm - 1) < 1e-4 if self.max_norm else False
        if at_limit and (ratio > 0.999).sum() >= 3:
            return float(np.mean(ratio > 0.999))
        top, rest = int((ratio > 0.999).sum()), ratio[ratio <= 0.999]
        # Of norms that the log rounds to some decimals, many may equal the largest: then as many equal the next one, or
        # the decimals are too few to tell.
        decimals = next((d for d in range(7) if (self.norms == self.norms.round(d)).all()), 7)
        if 10.0**-decimals > 0.03 * self.largest:
            return 0.0
        below = max(int((rest > 0.97).sum()), int((rest == rest.max()).sum())) if rest.size else 0
        return top / ratio.size if top >= max(5, 0.05 * ratio.size) and top > 3 * below else 0.0

    @cached_property
    def bfloat16(self) -> bool:
        """Whether the norms have only the 8 significant bits of bfloat16."""
        norms = self.norms[self.norms > 0]
        if norms.size < 20:
            return False
        bits = np.frexp(norms)[0] * 256
        # Whole and half numbers have few bits anyway.
        short = float(np.mean(norms * 2 == np.round(norms * 2)))
        return float(np.mean(bits == np.round(bits))) > 0.9 and short < 0.5 and np.unique(norms).size >= 8

    @cached_property
    def scale(self) -> float:
        """The median loss scale, NaN where the log has none."""
        scales = np.array(self.run.loss_scales)
        scales = scales[np.isfinite(scales)]
        return float(np.median(scales)) if scales.size else nan

    @cached_property
    def follows_scale(self) -> bool:
        """Whether the norm changes by the factor by which the loss scale does, each time."""
        if not self.run.loss_scales:
            return False
        scales = np.array(self.run.loss_scales)[self.finite]
        changes = np.flatnonzero(np.diff(scales) != 0) + 1
        edges = [0, *changes.tolist(), len(scales)]
        pieces = [slice(a, b) for a, b in pairwise(edges) if b - a >= 5]
        if np.isnan(scales).any() or len(pieces) < 2 or not (self.norms > 0).all() or not (scales > 0).all():
            return False
        # Norms around a change only: over a long piece they move for other reasons too.
        agree: list[bool] = []
        for old, new in pairwise(pieces):
            want = np.log2(scales[new.start] / scales[old.start])
            got = np.log2(np.median(self.norms[new][:10]) / np.median(self.norms[old][-10:]))
            agree.append(bool(abs(want) >= 1 and abs(got - want) < 0.5 * abs(want)))
        return sum(agree) > 0.6 * len(agree)
