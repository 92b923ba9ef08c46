"""Nestings of arrays: what is a leaf, how a tree is taken apart and put together, how an error names a leaf."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence, ValuesView
from numbers import Number
from typing import Any

import numpy as np

from . import memory
from .backends import BY_TYPE, TAKEN, Backend, advice, backend_of, pytree_node

Nested = Any  # one array, or any nesting of list, tuple, named tuple, dict and JAX's pytrees of arrays and None


class Tree:
    """The arrays of a tree, checked, with their backend and what is needed to put the tree together again.

    Of a sparse array, ``arrays`` holds the values, those of repeated indices summed. A tree without arrays belongs to
    the framework of the arguments ``beside`` it.
    """

    def __init__(
        self,
        tree: Nested,
        *,
        taken: tuple[str, ...] = TAKEN,
        in_place_of: str = "",
        same_shape: bool = False,
        beside: Sequence[Any] = (),
    ) -> None:
        self.arrays: list[Any] = []
        self.structure = _map(self._take, tree)
        self.backend = _backend_of_all(self.arrays, self.structure, taken, beside)
        self.places: Sequence[int] = range(len(self.arrays))  # of the arrays, among those of the structure
        self.again: dict[int, int] = {}  # the place of an array that is listed again, and its first place
        self.listed = self.arrays  # with those
        if in_place_of:
            self._check_writable(in_place_of, same_shape)
        self.sparse = {i: (a, self.backend.coalesce(a)) for i, a in enumerate(self.arrays) if self.backend.is_sparse(a)}
        for i, (_, coalesced) in self.sparse.items():
            self.arrays[i] = self.backend.sparse_values(coalesced)

    def _check_writable(self, functional: str, same_shape: bool) -> None:
        """Makes sure that every array can be written to, and that each place in memory is written to once."""
        backend = self.backend
        if not hasattr(backend, "scale_"):
            raise TypeError(
                f"{backend.NAME} arrays cannot be written to: use {functional}, without underscore, "
                "which makes new ones"
            )
        if found := backend.not_writable(self.arrays):
            i, reason = found
            raise TypeError(f"{self.name(i)} {reason}; nothing has been clipped")
        if not backend.apart(self.arrays):
            if backend.is_traced(self.arrays):  # an array listed twice is one array
                place: dict[int, int] = {}
                first = [place.setdefault(id(a), i) for i, a in enumerate(self.arrays)]
            else:
                first = memory.firsts([backend.layout(a) for a in self.arrays], self.name, same_shape)
            self.again = {i: j for i, j in enumerate(first) if i != j}
            self.places = [i for i in range(len(first)) if i not in self.again]
            self.arrays = [self.arrays[i] for i in self.places]

    def refuse_again(self, differ: Callable[[int, int], str]) -> None:
        """Raises where an array is listed again with another limit, which would not be kept: ``differ`` says how."""
        for i, j in self.again.items():
            if how := differ(j, i):
                raise ValueError(
                    f"{_name(self.structure, j)} and {_name(self.structure, i)} are one memory, which can have one "
                    f"limit, but {how}; nothing has been clipped"
                )

    def _take(self, leaf: Any) -> Any:
        if leaf is not None:
            self.arrays.append(leaf)
        return leaf

    def name(self, i: int) -> str:
        """How the caller would write the array i."""
        return _name(self.structure, self.places[i])

    def rebuild(self, arrays: Sequence[Any], *, dense: bool = False) -> Nested:
        """The tree with new arrays in the place of its own; those of sparse ones are their values, or ``dense``."""
        arrays = list(arrays)
        for i, (_, coalesced) in self.sparse.items() if not dense else ():
            arrays[i] = self.backend.with_values(coalesced, arrays[i])
        new = iter(arrays)
        return _map(lambda leaf: None if leaf is None else next(new), self.structure)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within it, what is written to the arrays is written to the tree."""
        with self.backend.writing():
            yield
            for array, coalesced in self.sparse.values():
                self.backend.write_back(array, coalesced)


def _map(visit: Callable[[Any], Any], tree: Nested) -> Nested:
    """The same tree with every leaf replaced by visit(leaf). Iterators become lists."""
    if isinstance(tree, dict):
        new = {key: _map(visit, value) for key, value in tree.items()}
        if type(tree) is dict:
            return new
        same_kind = copy.copy(tree)
        same_kind.update(new)
        return same_kind
    if isinstance(tree, (list, tuple, Iterator, ValuesView)):
        # For an array, the call of _map is left out: with thousands of arrays, it is felt.
        items = [visit(item) if BY_TYPE.get(type(item)) else _map(visit, item) for item in tree]
        if isinstance(tree, tuple):
            return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
        return items
    node = None if tree is None or backend_of(tree) else pytree_node(tree)
    if node is None:
        return visit(tree)
    children, make = node
    return make([child if _is_static(child) else _map(visit, child) for child in children.values()])


def _children(tree: Nested, name: str) -> list[tuple[str, Nested]] | None:
    """What a container holds, each with the expression that leads to it, grads['conv'].weight[0]; None for a leaf.

    What is static counts as no gradient.
    """
    if isinstance(tree, dict):
        return [(f"{name}[{key!r}]", value) for key, value in tree.items()]
    if hasattr(tree, "_fields"):
        return [(f"{name}.{field}", getattr(tree, field)) for field in tree._fields]
    if isinstance(tree, (list, tuple)):
        return [(f"{name}[{i}]", item) for i, item in enumerate(tree)]
    node = None if tree is None or backend_of(tree) else pytree_node(tree)
    if node is None:
        return None
    return [(name + path, None if _is_static(child) else child) for path, child in node[0].items()]


def _is_static(leaf: Any) -> bool:
    """Whether a leaf of a pytree is a part of the model that is no array: an activation function, a name, a flag.

    A model that is a pytree, such as Equinox' modules, has some. They are left as they are. A number is not static: JAX
    would take it for an array.
    """
    plain = isinstance(leaf, (dict, list, tuple, Number)) and not isinstance(leaf, bool)
    return not (leaf is None or plain or backend_of(leaf) or pytree_node(leaf))


def _leaves(tree: Nested, name: str = "grads") -> list[tuple[str, Any]]:
    """The leaves of a tree, each with the expression that leads to it."""
    children = _children(tree, name)
    if children is None:
        return [(name, tree)]
    return [leaf for path, child in children for leaf in _leaves(child, path)]


def _name(tree: Nested, place: int) -> str:
    """The expression that leads to one array. Only errors need it, so it is not kept at hand."""
    return [name for name, leaf in _leaves(tree) if leaf is not None][place]


def _backend_of_all(arrays: Sequence[Any], tree: Nested, taken: tuple[str, ...], beside: Sequence[Any] = ()) -> Backend:
    """The one backend of all arrays of a tree; if there are none, that of an array beside it, or NumPy's."""
    shared = None
    checked = set()
    for i, array in enumerate(arrays):
        kind = type(array), getattr(array, "dtype", None)
        if kind in checked:
            continue
        checked.add(kind)
        backend = backend_of(array)
        if backend is None:
            raise TypeError(
                f"{_name(tree, i)} is of type {type(array).__name__}; gradclip takes arrays of NumPy, PyTorch, "
                f"TensorFlow or JAX, and lists, tuples, named tuples and dicts of them{advice(array)}"
            )
        shared = shared or backend
        if backend is not shared:
            raise TypeError(
                f"{_name(tree, i)} is a {backend.NAME} array, {_name(tree, 0)} a {shared.NAME} one; "
                "the arrays of one call must belong to one framework"
            )
        if backend.dtype_name(array.dtype) not in taken:
            raise TypeError(
                f"{_name(tree, i)} has dtype {backend.dtype_name(array.dtype)}; this function takes {', '.join(taken)}"
            )
    return shared or next(filter(None, map(backend_of, (*beside, np.float32(0)))))


def matching(tree: Tree, other: Nested, name: str) -> list[Any]:
    """The leaves of another tree of the same structure, as they go with a tree's arrays."""
    other = _map(lambda leaf: leaf, other)
    leaves = list(_beside(tree.structure, other, name))

    def differ(i: int, j: int) -> str:
        if are_one(leaves[i], leaves[j]):
            return ""
        return " and ".join(name + _name(tree.structure, k).removeprefix("grads") for k in (i, j)) + " differ"

    tree.refuse_again(differ)
    return [leaves[i] for i in tree.places]


def are_one(a: Any, b: Any) -> bool:
    """Whether two limits, or two weights, are one array, or equal numbers that the host knows."""
    if a is b:
        return True
    backends = backend_of(a), backend_of(b)
    numbers = [
        x if backend is None else backend.host_value(x) if tuple(x.shape) == () else None
        for x, backend in zip((a, b), backends, strict=True)
    ]
    if None not in numbers:
        return bool(numbers[0] == numbers[1])
    backend = backends[0]
    one_kind = backend is backends[1] and hasattr(backend, "layout") and not backend.is_traced([a, b])
    return one_kind and bool(backend.layout(a) == backend.layout(b))


def _beside(tree: Nested, other: Nested, name: str, path: str = "") -> Iterator[Any]:
    """The leaves of another tree, each where the first has an array. Where the first has None, anything may be."""
    if tree is None:
        return
    own, others = _children(tree, path), _children(other, path)
    if (own is None) != (others is None) or [p for p, _ in own or ()] != [p for p, _ in others or ()]:
        raise ValueError(f"{name} must have the structure of grads: the same containers, keys and lengths")
    if own is None:
        yield other
    for (child_path, child), (_, counterpart) in zip(own or (), others or (), strict=True):
        yield from _beside(child, counterpart, name, child_path)


def weights_of(tree: Tree, params: Nested) -> list[Any]:
    """The parameters that have a gradient, in the order of a tree's arrays."""
    weights = matching(tree, params, "params")
    backend = _backend_of_all(weights, tree.structure, TAKEN)
    if tree.arrays and backend is not tree.backend:
        raise TypeError(f"params are {backend.NAME} arrays, the gradients {tree.backend.NAME} ones")
    for i, array in enumerate(tree.arrays):
        rows = i in tree.sparse  # a sparse gradient holds some rows of the whole one
        if None in {getattr(x.shape, "rank", 0) for x in (array, weights[i])}:
            raise ValueError(f"{tree.name(i)}, or its parameter, has no known rank here: tf.ensure_shape sets it")
        pairs = zip(tuple(weights[i].shape)[rows:], tuple(array.shape)[rows:], strict=False)
        differ = any(a != b and a is not None and b is not None for a, b in pairs)  # TensorFlow may not know a length
        if differ or len(weights[i].shape) != len(array.shape):
            shapes = f"{tuple(array.shape)}, its parameter {tuple(weights[i].shape)}"
            raise ValueError(f"{tree.name(i)} has shape {shapes}")
    return weights
