"""Which arrays share memory. In place, one memory is one array: it counts once, and is scaled once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Where the elements of an array are: the address of the first, the bytes of one, and the strides in bytes."""

    address: int
    dtype: Any
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, int]:
        """The address of the lowest byte, and the one after the highest."""
        if 0 in self.shape:
            return self.address, self.address
        reaches = [(n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)]
        lowest = self.address + sum(reach for reach in reaches if reach < 0)
        return lowest, self.address + sum(reach for reach in reaches if reach > 0) + self.itemsize

    def axes(self) -> list[tuple[int, int]]:
        """Stride and length of each axis, the shortest stride first, whichever way the axes run."""
        return sorted((abs(stride), n) for n, stride in zip(self.shape, self.strides, strict=True) if n > 1)

    def overlaps_itself(self) -> bool:
        """Whether several of its elements may share one place: no stride is to be shorter than what lies within it."""
        reach = self.itemsize
        for stride, n in self.axes():
            if stride < reach:
                return 0 not in self.shape
            reach += stride * (n - 1)
        return False

    def holds_the_same_as(self, other: "Layout") -> bool:
        """Whether both are views of the same elements, in whatever shape and order."""
        return self._elements() == other._elements()

    def _elements(self) -> tuple[Any, ...]:
        joined: list[tuple[int, int]] = []
        for stride, n in self.axes():  # an axis that goes on where the one within it ends is one with it
            if joined and stride == joined[-1][0] * joined[-1][1]:
                inner, length = joined.pop()
                joined.append((inner, length * n))
            else:
                joined.append((stride, n))
        return self.extent[0], self.dtype, joined

    def meets(self, other: "Layout") -> bool:
        """Whether an element of one shares a byte with an element of the other. No memory is read."""
        try:
            return np.shares_memory(self._as_numpy(), other._as_numpy(), max_work=1_000_000)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True

    def _as_numpy(self) -> Any:
        interface = {
            "version": 3,
            "data": (self.address, True),
            "typestr": f"|V{self.itemsize}",
            "shape": self.shape,
            "strides": self.strides,
        }
        return np.asarray(type("Interface", (), {"__array_interface__": interface})())


def firsts(layouts: Sequence[Layout], name_of: Callable[[int], str], same_shape: bool) -> list[int]:
    """Of each array, the position of the first one that is a view of the same elements: its own, if there is no other.

    Raises
    ------
    ValueError
        Two arrays share a part of their memory; or all of it, but not in the same shape although ``same_shape``.
    """
    extents = [layout.extent for layout in layouts]
    first = list(range(len(layouts)))
    before: list[int] = []  # the arrays that reach beyond the start of the next one
    for start, i in sorted((start, i) for i, (start, stop) in enumerate(extents) if start < stop):
        before = [j for j in before if extents[j][1] > start]
        for j in before:
            one, other = layouts[j], layouts[i]
            if one == other or (one.holds_the_same_as(other) and not same_shape):
                first[i] = j
                break
            if one.meets(other):
                raise ValueError(
                    f"{name_of(min(i, j))} and {name_of(max(i, j))} share memory, and are not the same array: it would "
                    "be scaled twice; nothing has been clipped"
                )
        else:
            before.append(i)
    return first
