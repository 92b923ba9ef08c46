"""Where ``max_norm`` comes from while a run goes on: thresholds that follow the norms they have seen.

Each class takes the norm of a step, before clipping, and gives the threshold for that same step. The lines are the
same whichever framework holds the gradients:

>>> import numpy as np
>>> from gradclip import clip_by_global_norm, global_norm, thresholds
>>> threshold = thresholds.MovingAverage(factor=2.0, warmup=3)
>>> for size in (1.0, 1.0, 1.0, 1.0, 50.0, 1.0):
...     grads = {"w": np.array([0.6, 0.8]) * size}  # of NumPy, PyTorch, TensorFlow or JAX
...     norm = global_norm(grads)
...     max_norm = threshold.update(norm)
...     grads, _ = clip_by_global_norm(grads, max_norm, norm=norm)
...     print(f"norm {float(norm):4.1f}   threshold {max_norm:.2f}   clipped to {float(global_norm(grads)):.2f}")
norm  1.0   threshold inf   clipped to 1.00
norm  1.0   threshold inf   clipped to 1.00
norm  1.0   threshold inf   clipped to 1.00
norm  1.0   threshold 2.00   clipped to 1.00
norm 50.0   threshold 2.00   clipped to 2.00
norm  1.0   threshold 2.04   clipped to 1.00

``update`` reads the norm on the host, so on a GPU the host waits there for the backward pass, once a step; and it
cannot stand inside a function that ``jax.jit``, ``tf.function`` or ``torch.compile(fullgraph=True)`` traces.

A norm that is NaN or infinite is never learned from: one such step must not move the threshold of all later ones.

``state_dict`` gives what has been learned as plain numbers and lists, so that a checkpoint written as JSON resumes
exactly. The settings are not part of it: they are the constructor's, and may be others after a resumption.
"""

from collections import Counter, deque
from heapq import heapify, heappop, heappush
from math import floor, hypot, inf, isfinite, sqrt
from typing import Any

import numpy as np

from . import checks

__all__ = ["MovingAverage", "Percentile", "ZScore"]


class Percentile:
    """A percentile of the norms seen so far (AutoClip).

    The norm joins the history, and the threshold is ``numpy.percentile(history, percentile)``.

    Parameters
    ----------
    percentile : float, default 10.0
        From 0 to 100, as a share of the norms. Once the norms have settled, a threshold at percentile p lets p % of the
        steps pass and clips the others: the paper's 10 clips nine steps of ten, and 90 clips one of ten.
    window : int, optional
        How many norms the history holds, the latest ones. All, when None; then state and memory grow with the run, by
        one number a step.

    Raises
    ------
    TypeError
        ``percentile`` is not a number, or ``window`` not an integer.
    ValueError
        ``percentile`` is outside 0 to 100, or ``window`` is below 1.

    References
    ----------
    Seetharaman, Wichern, Pardo and Le Roux, *AutoClip: adaptive gradient clipping for source separation networks*,
    MLSP 2020.

    Examples
    --------
    >>> threshold = Percentile(50)
    >>> [threshold.update(norm) for norm in (3.0, 1.0, 2.0, 100.0)]
    [3.0, 2.0, 2.0, 2.5]
    """

    def __init__(self, percentile: float = 10.0, *, window: int | None = None) -> None:
        self.percentile = checks.number(percentile, "percentile")
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"percentile must be from 0 to 100, got {self.percentile}")
        self.window = None if window is None else checks.count(window, "window", 1, "the history must hold a norm")
        self._fill(deque())

    def update(self, norm: Any) -> float:
        """Learn this step's norm, and give this step's threshold.

        Parameters
        ----------
        norm : float or 0-d array
            The norm before clipping, of any framework.

        Returns
        -------
        float
            The percentile of the history, in which this norm is if it is finite; ``inf`` before any finite norm.

        Raises
        ------
        TypeError
            ``norm`` is not a number or a 0-d array of them.
        ValueError
            ``norm`` is negative.
        """
        norm = checks.norm(norm)
        if isfinite(norm):
            self._append(norm)
        if not self._history:
            return inf
        # As numpy.percentile rounds, to the last bit.
        position = (len(self._history) - 1) * (self.percentile / 100)
        weight = position - floor(position)
        low = -self._lower.top()
        high = self._upper.top() if self._upper.size else low
        return low + (high - low) * weight if weight < 0.5 else high - (high - low) * (1 - weight)

    def state_dict(self) -> dict[str, Any]:
        """What has been learned: ``history``, the list of the norms held, the oldest first."""
        return {"history": list(self._history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; of a history longer than ``window``, from its latest norms.

        Raises
        ------
        TypeError, ValueError
            This is no state of a `Percentile`. Nothing has been changed then.
        """
        (history,) = checks.entries(state, self, "history")
        self._fill(deque(checks.finite_norms(history, "history"), maxlen=self.window))

    def _fill(self, history: deque[float]) -> None:
        """Start from a history: its smallest norms, up to the percentile's place, in one heap, the rest in another.

        With each new norm that place moves by at most one. So a step takes a few operations on heaps, while a history
        that is kept sorted in one list would make every step slower than the last.
        """
        self._history = history  # in the order in which the norms came
        lower = self._position() + 1 if history else 0
        norms = np.array(history)
        norms = np.partition(norms, lower - 1) if lower else norms
        self._lower, self._upper = _Heap((-norms[:lower]).tolist()), _Heap(norms[lower:].tolist())

    def _position(self) -> int:
        """The place of the percentile, or of the norm below it, in the sorted history."""
        return floor((len(self._history) - 1) * (self.percentile / 100))

    def _append(self, norm: float) -> None:
        if len(self._history) == self.window:
            oldest = self._history.popleft()
            if oldest <= -self._lower.top():
                self._lower.remove(-oldest)
            else:
                self._upper.remove(oldest)
        self._history.append(norm)
        if self._lower.size and norm <= -self._lower.top():
            self._lower.push(-norm)
        else:
            self._upper.push(norm)
        while self._lower.size <= self._position():
            self._lower.push(-self._upper.pop())
        while self._lower.size > self._position() + 1:
            self._upper.push(-self._lower.pop())


class _Heap:
    """Numbers, the smallest at the top. One that is removed from further down stays until it comes to the top."""

    def __init__(self, numbers: list[float]) -> None:
        heapify(numbers)
        self.numbers, self.size = numbers, len(numbers)
        self.removed: Counter[float] = Counter()

    def push(self, number: float) -> None:
        heappush(self.numbers, number)
        self.size += 1

    def remove(self, number: float) -> None:
        self.removed[number] += 1
        self.size -= 1
        if len(self.numbers) > 2 * self.size + 64:  # drop what was removed, lest the heap grow with the run
            self.numbers = list((Counter(self.numbers) - self.removed).elements())
            heapify(self.numbers)
            self.removed.clear()

    def top(self) -> float:
        while self.removed[self.numbers[0]]:
            self.removed[heappop(self.numbers)] -= 1
        return self.numbers[0]

    def pop(self) -> float:
        self.top()
        self.size -= 1
        return heappop(self.numbers)


class ZScore:
    """A bound on how many standard deviations a norm may lie above the mean (ZClip).

    With μ and σ the mean and the standard deviation of the norms, s = (n − μ)/σ is the z-score of a norm n. Where
    s > z, the threshold is μ + (z²/s)·σ, which is lower the farther out the norm lies; where s ≤ z, it is ``inf``. The
    first ``warmup`` norms give μ and σ, and the threshold is ``inf`` for them. Each later one moves them, as n' = n or,
    if clipped, as n' = the threshold: μ ← αμ + (1−α)n', and then, with the new μ, σ² ← ασ² + (1−α)(n' − μ)².

    Parameters
    ----------
    z : float, default 2.5
        The z-score above which a norm is clipped, above 0.
    alpha : float, default 0.97
        How much of μ and σ² a step keeps, from 0 to below 1. 0.97 averages over some 1/(1 − 0.97) = 33 steps.
    warmup : int, default 25
        How many norms give the first μ and the first, population, σ; at least 1.
    cap : float, optional
        No threshold is above it, in the warm-up neither. It is not learned: n' knows nothing of it.
    clip_option : {"adaptive_scaling", "percentile", "mean"}
        The threshold of a norm with s > z: μ + (z²/s)·σ, as above; μ + z·σ, the largest norm that passes (ZClip's
        percentile mode); or μ.
    skip_update_on_spike : bool, default False
        Whether to learn nothing from a norm with s > z. By default its threshold is learned in its place. With True,
        norms that rise to a new level and stay there are clipped for good.

    Raises
    ------
    TypeError
        ``z``, ``alpha`` or ``cap`` is not a number, ``warmup`` not an integer, or ``skip_update_on_spike`` not a bool.
    ValueError
        ``z`` is not finite and above 0, ``alpha`` is not in [0, 1), ``warmup`` is below 1, ``cap`` is negative or NaN,
        or ``clip_option`` is none of the above.

    Notes
    -----
    Norms all alike have σ = 0; then any norm above μ is clipped to μ.

    References
    ----------
    Kumar, Owen, Chowdhury and Güra, *ZClip: adaptive spike mitigation for LLM pre-training*, arXiv 2504.02507, 2025.

    Examples
    --------
    >>> threshold = ZScore(z=2.0, warmup=2)
    >>> [threshold.update(norm) for norm in (1.0, 3.0, 4.0)]  # the mean of 1 and 3 is 2, their deviation 1
    [inf, inf, inf]
    >>> round(threshold.update(100.0), 2)
    2.1
    """

    _OPTIONS = ("adaptive_scaling", "percentile", "mean")

    def __init__(
        self,
        z: float = 2.5,
        *,
        alpha: float = 0.97,
        warmup: int = 25,
        cap: float | None = None,
        clip_option: str = "adaptive_scaling",
        skip_update_on_spike: bool = False,
    ) -> None:
        self.z = checks.positive(z, "z")
        self.alpha = checks.share(alpha, "alpha")
        self.warmup = checks.count(warmup, "warmup", 1, "the first norm has none before it to be compared with")
        self.cap = None if cap is None else checks.threshold(cap, "cap")
        if clip_option not in self._OPTIONS:
            raise ValueError(f"clip_option must be one of {', '.join(map(repr, self._OPTIONS))}, got {clip_option!r}")
        if not isinstance(skip_update_on_spike, bool):
            raise TypeError(f"skip_update_on_spike must be True or False, got {skip_update_on_spike!r}")
        self.clip_option = clip_option
        self.skip_update_on_spike = skip_update_on_spike
        self._count = 0
        self._mean = 0.0
        self._deviation = 0.0

    def update(self, norm: Any) -> float:
        """Give this step's threshold, and learn this step's norm.

        Parameters
        ----------
        norm : float or 0-d array
            The norm before clipping, of any framework.

        Returns
        -------
        float
            The threshold. A norm that is NaN or infinite is taken to lie infinitely far out: after the warm-up, it gets
            the limit of the threshold, which is μ by default. (With ``inf``, `gradclip.clip_by_global_norm` would let
            it through.)

        Raises
        ------
        TypeError
            ``norm`` is not a number or a 0-d array of them.
        ValueError
            ``norm`` is negative.
        """
        norm = checks.norm(norm)
        finite = isfinite(norm)
        threshold = self._threshold(norm if finite else inf)
        if finite and not (self.skip_update_on_spike and threshold < inf):
            self._learn(min(norm, threshold))
        return threshold if self.cap is None else min(threshold, self.cap)

    def _threshold(self, norm: float) -> float:
        excess, allowed = norm - self._mean, self.z * self._deviation
        if self._count < self.warmup or excess <= allowed:
            return inf
        if self.clip_option == "mean":
            return self._mean
        if self.clip_option == "percentile":
            return self._mean + allowed
        return self._mean + allowed * (allowed / excess)  # (z²/s)·σ, for σ = 0 too

    def _learn(self, norm: float) -> None:
        # The deviation is kept instead of σ², and hypot(a, b) written for √(a² + b²): squares would leave the range of
        # float64 with norms above 1e154 or below 1e-162.
        self._count += 1
        change = norm - self._mean
        if self._count <= self.warmup:  # the mean and the deviation of all norms so far (Welford 1962)
            k = self._count
            self._mean += change / k
            self._deviation = hypot(sqrt((k - 1) / k) * self._deviation, sqrt(k - 1) / k * change)
        else:
            self._mean += (1 - self.alpha) * change
            self._deviation = hypot(sqrt(self.alpha) * self._deviation, sqrt(1 - self.alpha) * (norm - self._mean))

    def state_dict(self) -> dict[str, Any]:
        """What has been learned: ``count`` of norms, their ``mean`` μ and their ``deviation`` σ."""
        return {"count": self._count, "mean": self._mean, "deviation": self._deviation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises
        ------
        TypeError, ValueError
            This is no state of a `ZScore`. Nothing has been changed then.
        """
        count, mean, deviation = checks.entries(state, self, "count", "mean", "deviation")
        count, (mean, deviation) = (
            checks.count(count, "count", 0, "it counts norms"),
            checks.finite_norms([mean, deviation], "mean and deviation"),
        )
        self._count, self._mean, self._deviation = count, mean, deviation


class MovingAverage:
    """A multiple of a moving average of the clipped norms.

    The threshold is factor·μ, with the μ of the norms before this one; in the warm-up it is ``inf``. Then the norm, as
    n' = min(n, factor·μ), in the warm-up too, moves the average: μ ← μ + r·(n' − μ), where r = (1 − α)/(1 − αᵗ) for the
    t-th norm of the warm-up, and r = 1 − α after it. These r are the bias correction: with them μ is, in the warm-up,
    the mean of the clipped norms under the weights αᵗ⁻¹, …, α, 1, and not an average that starts at 0. The first norm,
    and any that follows norms of 0 alone, is taken as it is.

    Parameters
    ----------
    factor : float, default 2.0
        How many times the average a norm may be, above 0. At 1 or below, μ can only fall.
    alpha : float, default 0.98
        How much of μ a step keeps, from 0 to below 1. 0.98 averages over some 1/(1 − 0.98) = 50 steps.
    warmup : int, default 100
        For how many norms the threshold is ``inf``; at least 1.

    Raises
    ------
    TypeError
        ``factor`` or ``alpha`` is not a number, or ``warmup`` not an integer.
    ValueError
        ``factor`` is not finite and above 0, ``alpha`` is not in [0, 1), or ``warmup`` is below 1.

    References
    ----------
    The rule of AdaGC, for the global norm instead of one per array: Wang et al., *AdaGC: improving training stability
    for large language model pretraining*, arXiv 2502.11034, 2025.

    Examples
    --------
    >>> threshold = MovingAverage(factor=2.0, alpha=0.5, warmup=2)
    >>> [threshold.update(norm) for norm in (1.0, 1.0, 9.0, 1.0)]  # 9 is learned as 2: μ goes from 1 to 1.5
    [inf, inf, 2.0, 3.0]
    """

    def __init__(self, factor: float = 2.0, *, alpha: float = 0.98, warmup: int = 100) -> None:
        self.factor = checks.positive(factor, "factor")
        self.alpha = checks.share(alpha, "alpha")
        self.warmup = checks.count(warmup, "warmup", 1, "the first norm has none before it to be compared with")
        self._count = 0
        self._average = 0.0

    def update(self, norm: Any) -> float:
        """Give this step's threshold, and learn this step's norm.

        Parameters
        ----------
        norm : float or 0-d array
            The norm before clipping, of any framework. One that is NaN or infinite gets the same threshold as any.

        Returns
        -------
        float
            The threshold factor·μ; ``inf`` in the warm-up, or where no norm was above 0 yet.

        Raises
        ------
        TypeError
            ``norm`` is not a number or a 0-d array of them.
        ValueError
            ``norm`` is negative.
        """
        norm = checks.norm(norm)
        # A limit of 0 would make every later norm 0, and then the average for good.
        limit = self.factor * self._average or inf
        threshold = inf if self._count < self.warmup else limit
        if isfinite(norm):
            self._count += 1
            rate = 1 - self.alpha
            if self._count <= self.warmup:
                rate /= 1 - self.alpha**self._count
            self._average += rate * (min(norm, limit) - self._average)
        return threshold

    def state_dict(self) -> dict[str, Any]:
        """What has been learned: ``count`` of norms, and their ``average`` μ."""
        return {"count": self._count, "average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises
        ------
        TypeError, ValueError
            This is no state of a `MovingAverage`. Nothing has been changed then.
        """
        count, average = checks.entries(state, self, "count", "average")
        count, (average,) = (
            checks.count(count, "count", 0, "it counts norms"),
            checks.finite_norms([average], "average"),
        )
        self._count, self._average = count, average
