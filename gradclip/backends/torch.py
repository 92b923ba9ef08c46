"""PyTorch: on the CPU a plain ``if`` decides; on a GPU, under autograd or a compiler, the factor stays a tensor."""

import functools
import importlib.util
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.autograd import forward_ad

from ..memory import Layout
from . import TINY, Norm
from .torch_sharded import is_sharded, local, measure_shards, nowhere_empty, shard_of, whole

NAME = "PyTorch"
BLOCK = 512  # elements whose squares are summed in their own precision; blocks are joined in float64
JOIN = 1 << 15  # elements; from here on PyTorch uses several threads, and waiting for them costs small arrays too much
CHUNK = 1 << 18  # elements widened at a time
WIDE = (torch.float64, torch.complex128)
HALF = (torch.float16, torch.bfloat16)
MAX = torch.finfo(torch.float64).max
CPU = torch.device("cpu")
UNIT_AXIS = 0  # of a weight of shape (out, in, …)

Array = Any  # torch.Tensor


# What rules.py asks about an array ------------------------------------------------------------------------------------


def is_array(x: object) -> bool:
    """A subclass that changes what operations do is taken if it is PyTorch's own, as DTensor is, and does clip."""
    kind: Any = type(x)
    if kind in _PLAIN or not isinstance(x, torch.Tensor):
        return kind in _PLAIN
    function = getattr(kind.__torch_function__, "__func__", None)
    changes = (
        function is not torch.Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
        or kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    )
    return not changes or (kind.__module__.startswith("torch.") and kind.__name__ != "MaskedTensor")


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def host_value(x: Array) -> float | None:
    """The least element of an array where the host can read it without waiting, else None."""
    x = whole(x)
    return float(x.min()) if x.numel() and _on_host([x]) else None


def is_traced(arrays: Sequence[Array]) -> bool:
    return torch.compiler.is_compiling()


def not_writable(arrays: Sequence[Array]) -> tuple[int, str] | None:
    """The position of the first array that cannot be written to, and why."""
    compiling = torch.compiler.is_compiling()
    in_inference = not compiling and torch.is_inference_mode_enabled()
    for i, x in enumerate(arrays):
        if type(x) is not torch.Tensor and isinstance(x, torch.nn.Parameter):
            return i, "is a parameter: clipping it would change the weights; pass its .grad"
        if x.requires_grad and x.is_leaf:
            return i, (
                "requires a derivative and is not calculated from anything, as a parameter: clipping that would change "
                "the weights. Pass its .grad or, if it is a gradient, its .detach()"
            )
        if compiling:
            continue
        if not in_inference and x.is_inference():
            return i, "was made in inference mode, and is read-only outside of it"
        if x.layout is torch.strided and not x.is_contiguous() and layout(x).overlaps_itself():
            return i, "is expanded: several of its elements share one place in memory"
    return None


def apart(arrays: Sequence[Array]) -> bool:
    """Whether a quick look tells that no two arrays share memory: from the first to the last byte, no two meet."""
    if torch.compiler.is_compiling():  # addresses are unknown, and arrays that meet are the compiler's business
        return len({id(a) for a in arrays}) == len(arrays)
    spans = []
    with torch.no_grad():  # where what a rank holds of a DTensor is at hand
        for a in arrays:
            a = a if type(a) is torch.Tensor else local(a)
            if type(a) is torch.Tensor and a.layout is torch.strided and a.is_contiguous():
                spans.append((a.data_ptr(), a.nbytes))
            else:
                start, stop = layout(a).extent
                spans.append((start, stop - start))
    spans.sort()
    return all(start + size <= other for (start, size), (other, _) in itertools.pairwise(spans))


def layout(x: Array) -> Layout:
    x = local(x)
    x = x._values() if x.layout is torch.sparse_coo else x
    if type(x) in _PLAIN:
        step = x.element_size()
        return Layout(x.data_ptr(), x.dtype, step, tuple(x.shape), tuple(step * stride for stride in x.stride()))
    return Layout(id(x), x.dtype, 1, (1,), (1,))  # what a tracer stands in for has no place in memory


def is_negated(x: Array) -> bool:
    """Whether x is lazily negated: what lies in memory is -x. A compiler keeps no array lazy."""
    return not torch.compiler.is_compiling() and bool(x.is_neg())


def constant(x: Array) -> Array:
    """x, without a derivative."""
    return x.detach()


reshape = torch.reshape


def all_finite(x: Array) -> bool:
    if is_sharded([x]):  # every rank must give the same answer
        return math.isfinite(float(measure([x], math.inf).mantissa))
    return bool(torch.isfinite(x).all())


def _on_host(arrays: Sequence[Any]) -> bool:
    """Whether a branch on values is free: no device to wait for, no derivative to carry, nothing that traces or maps.

    A derivative is carried by a graph (of a tensor that requires it), by a dual tensor, which lives within a level of
    forward mode, or by a transform of torch.func. Modes see every operation but no branch, as tracers must.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state():
        return False
    no_grad = not torch.is_grad_enabled()
    return all(a.is_cpu and type(a) in _PLAIN and (no_grad or not a.requires_grad) for a in arrays)


writing = torch.no_grad  # the context in which rules.py writes in place


def _kernels(arrays: Sequence[Array]) -> Any:
    """The module of CUDA kernels, where arrays like these can use it: for no derivative, with nothing that traces."""
    if torch.compiler.is_compiling() or not arrays or not arrays[0].is_cuda:
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return None
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state():
        return None
    if torch.is_grad_enabled() and any(a.requires_grad for a in arrays):
        return None
    return _triton_kernels()


@functools.cache
def _triton_kernels() -> Any:
    """The module, None where there is no Triton, or where importing it would end the process.

    TensorFlow 2.21 and Triton from 3.7 on each bring an LLVM. The two get along only if Triton comes first.
    """
    if "triton" not in sys.modules and ("tensorflow" in sys.modules or not importlib.util.find_spec("triton")):
        return None
    return importlib.import_module("gradclip.backends.triton_kernels")


# Sparse arrays --------------------------------------------------------------------------------------------------------


def is_sparse(x: Array) -> bool:
    if x.layout is torch.strided and not x.is_nested:
        return False
    if x.layout is torch.sparse_coo:
        return True
    kind = "is nested" if x.is_nested else f"has the layout {x.layout}"
    raise TypeError(f"an array {kind}; gradclip takes arrays of torch.strided and torch.sparse_coo")


def sparse_axes(x: Array) -> int:
    """How many axes the indices of x count."""
    return int(x.sparse_dim())


def coalesce(x: Array) -> Array:
    """The same array with every index once."""
    return x.coalesce()


def sparse_values(x: Array) -> Array:
    return x.values()


def with_values(x: Array, values: Array) -> Array:
    return torch.sparse_coo_tensor(x.indices(), values, x.shape, check_invariants=False, is_coalesced=True)


def write_back(x: Array, coalesced: Array) -> None:
    if coalesced is not x:
        x.copy_(coalesced)


def rows_of(dense: Array, x: Array) -> Array:
    """The rows of a dense array that x has values for."""
    return dense[x.indices()[0]]


# The norm -------------------------------------------------------------------------------------------------------------


def measure(arrays: Sequence[Array], ord: float) -> Norm:
    """The norm of all arrays joined."""
    if ord == 2 and (kernels := _kernels(arrays)) and (measured := kernels.measure(arrays)):
        return Norm(*measured)
    if len(arrays) == 1 and arrays[0].numel() < JOIN and _on_host(arrays):
        return measure_each(arrays, ord, [None])[0]  # one array has one norm, whoever asks for it
    groups = _by_dtype(arrays)
    if ord == 2 and _on_host(arrays):
        norm, lost = 0.0, 0.0
        for dtype, group in groups.items():
            norm_of_group, size = _two_norm(group, _accumulator(dtype))
            norm = math.hypot(norm, norm_of_group)
            # A square below the smallest normal number may be lost; the sum must be so large that it would not count.
            lost += size * (2.0**-1022 if dtype in WIDE else TINY)
        if math.sqrt(lost) * 2**11 <= norm < math.inf:
            return _norm(arrays, norm, 1.0)
    if is_sharded(arrays):
        return _norm(arrays, *measure_shards(arrays, ord, lambda held, device: _pair(measure(held, ord), device)))
    chunks = list(_chunks(arrays))
    if not chunks:
        return _norm(arrays, 0.0, 1.0)
    device = chunks[0].device
    if ord == 2 and not any(dtype in WIDE for dtype in groups) and not _saves(arrays):
        # float64 holds the square of every float32, so that no scale is needed.
        return _norm(arrays, _root(sum(_powers(c, None, 2).to(device) for c in chunks), 2), 1.0)
    peak = torch.stack([_peak(c).to(device) for c in chunks]).amax()
    scale = _usable(peak)
    powers = torch.stack([_powers(c, scale.to(c.device), ord).to(device) for c in chunks])
    whole = powers.amax() if ord == math.inf else _root(powers.sum(), ord)
    return _norm(arrays, torch.where(torch.isfinite(peak), whole.clamp(max=MAX), peak), scale)


def given(norm: Any, arrays: Sequence[Array]) -> Norm:
    """A norm that the caller has measured."""
    return _norm(arrays, norm.to(torch.float64) if isinstance(norm, torch.Tensor) else float(norm), 1.0)


def measure_each(arrays: Sequence[Array], ord: float, axes: Sequence[tuple[int, ...] | None]) -> list[Norm]:
    """Of each array its own norm or, along its axes, the norms of its slices."""
    norms: dict[int, Norm] = {}
    alike: dict[Any, list[int]] = {}
    on_host = _on_host(arrays)
    for i, (a, axis) in enumerate(zip(arrays, axes, strict=True)):
        if a.numel() < JOIN and (on_host or _on_host([a])):  # a thousand calls would take longer than what they do
            alike.setdefault((a.shape, a.dtype, axis), []).append(i)
        else:
            norms[i] = measure([a], ord) if axis is None else slice_norms(a, ord, axis)
    for (shape, _, axis), places in alike.items():
        count = 1 if axis is None else math.prod(n for i, n in enumerate(shape) if i not in axis)
        step = max(1, (JOIN - 1) // max(1, count))
        for run in (places[start : start + step] for start in range(0, len(places), step)):
            columns = _measure_alike([arrays[i] for i in run], ord, axis)
            norms |= zip(run, map(Norm, *(x.unbind() for x in columns)), strict=True)
    return [norms[i] for i in range(len(arrays))]


def _measure_alike(arrays: Sequence[Array], ord: float, axis: tuple[int, ...] | None) -> Norm:
    """The norms of small arrays of one shape and dtype, stacked."""
    shape, dtype = arrays[0].shape, arrays[0].dtype
    along = tuple(range(1, len(shape) + 1)) if axis is None else tuple(i + 1 for i in axis)
    of_slices = () if axis is None else tuple(1 if i in axis else n for i, n in enumerate(shape))
    step = max(1, JOIN // max(1, shape.numel()))
    batches = [arrays[start : start + step] for start in range(0, len(arrays), step)]
    if ord == 2 and shape.numel():
        norm = _row_norms(torch.cat([_block_norms(torch.stack([*batch]), along) for batch in batches]))
        right = _squares_fit(norm, shape.numel(), dtype)
        norm = norm.view(len(arrays), *of_slices)
        joined = Norm(norm.to(_accumulator(dtype)), norm, torch.ones_like(norm))
        if right.all():
            return joined
        wrong = (~right).view(len(arrays), -1).any(1).nonzero().flatten()
        again = _measure_scaled([arrays[i] for i in wrong.tolist()], ord, along, of_slices, step)
        return Norm(*(x.index_copy(0, wrong, y) for x, y in zip(joined, again, strict=True)))
    return _measure_scaled(arrays, ord, along, of_slices, step)


def _measure_scaled(arrays: Sequence[Array], ord: float, along: Any, of_slices: tuple[int, ...], step: int) -> Norm:
    """The same, for any order and whether or not the squares fit."""
    batches = (torch.stack([*arrays[start : start + step]]) for start in range(0, len(arrays), step))
    columns = zip(*(slice_norms(batch, ord, along) for batch in batches), strict=True)
    return Norm(*(torch.cat(column).view(len(arrays), *of_slices) for column in columns))


def _squares_fit(norm: Array, size: int, dtype: torch.dtype) -> Array:
    """Whether the norm of so many numbers is right, though their squares were summed as they are."""
    # A square below the smallest normal number may be lost; the sum must be so large that it would not count.
    lost = 2 * size * (2.0**-1022 if dtype in WIDE else TINY)
    return (norm >= math.sqrt(lost) * 2**11) & (norm < math.inf)


def join(norms: Sequence[Norm], ord: float) -> Norm:
    """The norms of vectors that were measured in parts, from the norms of the parts."""
    device = norms[0].value.device
    mantissa, scale = (
        torch.stack([_scalar(x, torch.float64, device) for x in column])
        for column in list(zip(*norms, strict=True))[1:]
    )
    largest = _usable(torch.where(mantissa > 0, scale, 0.0).amax(0))
    parts = mantissa * (scale / largest)
    norm = parts.amax(0) if ord == math.inf else _root(_powers(parts, torch.ones_like(largest), ord, (0,))[0], ord)
    wide = any(n.value.dtype == torch.float64 for n in norms)
    return Norm((norm * largest).to(torch.float64 if wide else torch.float32), norm, largest)


def slice_norms(x: Array, ord: float, axis: tuple[int, ...]) -> Norm:
    """The norms of the slices of x along axis, whose lengths become 1."""
    if not axis:  # to PyTorch, no axes are all axes
        return Norm(*(n.squeeze(-1) for n in slice_norms(x.unsqueeze(-1), ord, (x.ndim,))))
    if is_sharded([x]):  # to cut it would gather it on every rank
        return _slice_norms(nowhere_empty(x, axis), ord, axis)
    kept = [i for i in range(x.ndim) if i not in axis]
    if not kept or torch.compiler.is_compiling():
        return _slice_norms(x, ord, axis)
    longest = max(kept, key=lambda i: x.shape[i])  # cut there, so that little is widened at a time
    step = max(1, CHUNK * x.shape[longest] // max(1, x.numel()))
    slabs = [_slice_norms(slab, ord, axis) for slab in x.split(step, longest)]
    return Norm(*(torch.cat(column, longest) for column in zip(*slabs, strict=True)))


def _slice_norms(x: Array, ord: float, axis: tuple[int, ...]) -> Norm:
    if not x.numel():
        zeros = torch.zeros(
            [1 if i in axis else n for i, n in enumerate(x.shape)], dtype=torch.float64, device=x.device
        )
        return Norm(zeros.to(_accumulator(x.dtype)), zeros, zeros + 1)
    if ord == 2 and x.dtype not in WIDE and _on_host([x]):
        norm = _row_norms(_block_norms(x, axis))
        if _squares_fit(norm, x.numel(), x.dtype).all():
            norm = norm.view([1 if i in axis else n for i, n in enumerate(x.shape)])
            return Norm(norm.to(_accumulator(x.dtype)), norm, torch.ones_like(norm))
    peak = _peak(x, axis)
    scale = _usable(peak)
    norm = _powers(x, scale, ord, axis)
    norm = norm if ord == math.inf else _root(norm, ord)
    mantissa = torch.where(torch.isfinite(peak), norm.clamp(max=MAX), peak)
    return Norm((mantissa * scale).to(_accumulator(x.dtype)), mantissa, scale)


def _block_norms(x: Array, axis: tuple[int, ...]) -> Array:
    """A row for each slice, with the 2-norms of its blocks, their squares summed in their own precision."""
    kept = [i for i in range(x.ndim) if i not in axis]
    count = math.prod(x.shape[i] for i in kept)
    norms = []
    for part in _parts(x):
        rows = part.permute(*kept, *axis).reshape(count, x.numel() // count).to(_accumulator(x.dtype))
        if whole := rows.shape[1] - rows.shape[1] % BLOCK:
            norms.append(torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, BLOCK)), dim=2))
        if whole < rows.shape[1]:
            norms.append(torch.linalg.vector_norm(rows[:, whole:], dim=1, keepdim=True))
    return norms[0] if len(norms) == 1 else torch.cat(norms, 1)


def _row_norms(blocks: Array) -> Array:
    """The 2-norm of each row in float64."""
    if blocks.shape[1] == 1:
        return blocks[:, 0].to(torch.float64)
    return torch.linalg.vector_norm(blocks, dim=1, dtype=torch.float64)


def unit_limits(norms: Sequence[Norm], clip_factor: Any, eps: Any) -> list[Norm]:
    """The limits r·max(‖W‖, eps) on the gradients of units, given the norms of the units' weights W."""
    limits: list[Norm] = []
    for run in _runs(norms):
        joined, restore = _joined(norms[run])
        for norm in joined:
            device = norm.value.device
            r, least, n, s = (_scalar(x, torch.float64, device) for x in (clip_factor, eps, *norm[1:]))
            small = n * s <= least
            n, s = torch.where(small, least, n) * r, torch.where(small, 1.0, s)
            limit = Norm(n * s, n, s)
            limits += map(Norm, *map(restore, limit)) if restore else [limit]
    return limits


def _norm(arrays: Sequence[Array], mantissa: Any, scale: Any) -> Norm:
    tensors = [t for t in (mantissa, scale) if isinstance(t, torch.Tensor)]
    if tensors and _on_host([*arrays, *tensors]):
        mantissa, scale = float(mantissa), float(scale)
    dtype = torch.float64 if any(a.dtype in WIDE for a in arrays) else torch.float32
    device = arrays[0].device if arrays else tensors[0].device if tensors else CPU
    return Norm(_scalar(mantissa * scale, dtype, device), mantissa, scale)


def _scalar(x: Any, dtype: torch.dtype, device: torch.device) -> Array:
    """A number or 0-d tensor as one of this dtype, infinite if it does not fit; filling makes no GPU wait."""
    x = x if isinstance(x, torch.Tensor) else torch.full((), x, dtype=torch.float64, device=device)
    return x.to(device, dtype)


def _by_dtype(arrays: Sequence[Array]) -> dict[torch.dtype, Sequence[Array]]:
    dtypes = {a.dtype for a in arrays}
    return {dtype: arrays if len(dtypes) == 1 else [a for a in arrays if a.dtype == dtype] for dtype in dtypes}


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the norm of arrays of this dtype."""
    return torch.float64 if dtype in WIDE else torch.float32


def _parts(x: Array) -> tuple[Array, ...]:
    """x itself if it is real, else its real and its imaginary part."""
    return (x.real, x.imag) if x.is_complex() else (x,)


def _flat(x: Array) -> Array:
    """All elements in the order of memory: a view, unless there are gaps between them."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return x.permute(order).reshape(-1)


def _two_norm(arrays: Sequence[Array], dtype: torch.dtype) -> tuple[float, int]:
    """The 2-norm of arrays of one dtype, the squares summed in another, and how many there are."""
    norms, size = [], 0
    parts = [p for a in arrays for p in _parts(a)] if arrays[0].is_complex() else arrays
    for batch in _batches(parts, dtype):
        n = batch.numel()
        size += n
        if rest := n % BLOCK:
            norms.append(torch.linalg.vector_norm(batch[n - rest :]).reshape(1))
            batch = batch[: n - rest]
        norms.append(torch.linalg.vector_norm(batch.view(-1, BLOCK), dim=1))
    return float(torch.linalg.vector_norm(torch.cat(norms), dtype=torch.float64)), size


def _batches(arrays: Iterable[Array], dtype: torch.dtype) -> Iterator[Array]:
    """All elements as flat arrays of one dtype: small arrays joined, others cut where they must be cast."""
    small: list[Array] = []
    size = 0
    for a in arrays:
        n = a.numel()
        if n < JOIN:
            if size + n >= JOIN:
                yield _concatenated(small).to(dtype)
                small, size = [], 0
            small.append(a)
            size += n
        elif a.dtype == dtype:
            yield _flat(a)
        else:
            yield from (chunk.to(dtype) for chunk in _flat(a).split(CHUNK))
    if small:
        yield _concatenated(small).to(dtype)


def _concatenated(arrays: Sequence[Array]) -> Array:
    """All elements in one flat array. To stack arrays of one shape takes half as long."""
    alike = len({a.shape for a in arrays}) == 1
    return torch.stack([*arrays]).view(-1) if alike else _flatten_dense_tensors(arrays)


def _chunks(arrays: Sequence[Array]) -> Iterator[Array]:
    """All elements, a chunk at a time, so that little is widened at once; a compiler fuses, and needs no chunks."""
    for a in arrays:
        if a.numel():
            yield from (a,) if torch.compiler.is_compiling() else _flat(a).split(CHUNK)


def _saves(arrays: Sequence[Array]) -> bool:
    """Whether autograd keeps what it is given for the derivative: then float64 is twice as much as needed."""
    return not torch.compiler.is_compiling() and torch.is_grad_enabled() and any(a.requires_grad for a in arrays)


def _peak(x: Array, axis: tuple[int, ...] | None = None) -> Array:
    """The largest absolute value of a real or imaginary part, in float64."""
    along: Any = {} if axis is None else {"dim": axis, "keepdim": True}
    largest = [p.detach().abs().amax(**along) for p in _parts(x)]
    return functools.reduce(torch.maximum, largest).to(torch.float64)


def _usable(peak: Array) -> Array:
    """A scale to divide by: the peak, or 1 where that is zero or not finite."""
    return torch.where((peak > 0) & torch.isfinite(peak), peak, 1.0)


def _powers(x: Array, scale: Array | None, ord: float, axis: tuple[int, ...] | None = None) -> Array:
    """Σ(|x|/scale)ᵖ, or the largest for p = ∞, in float64. Where x is 0, its derivatives are 0 and not NaN."""
    along: Any = {} if axis is None else {"dim": axis, "keepdim": True}
    wide = torch.float64 if scale is None or ord != 2 else _accumulator(x.dtype)
    parts = [p.to(wide) if scale is None else p.to(wide) / scale.to(wide) for p in _parts(x)]
    if ord == 2:
        return sum(p.square().sum(dtype=torch.float64, **along) for p in parts)
    moduli = parts[0] if len(parts) == 1 else torch.complex(*parts)
    present = moduli != 0
    moduli = torch.where(present, moduli, 1.0).abs()
    if ord == math.inf:
        return torch.where(present, moduli, 0.0).amax(**along)
    return torch.where(present, moduli**ord, 0.0).sum(**along)


def _root(powers: Array, ord: float) -> Array:
    """The norm whose powers add up to this, with a derivative of 0 at 0."""
    present = powers != 0
    powers = torch.where(present, powers, 1.0)
    return torch.where(present, powers.sqrt() if ord == 2 else powers ** (1 / ord), 0.0)


def _pair(norm: Norm, device: torch.device) -> Array:
    return torch.stack([_scalar(x, torch.float64, device) for x in (norm.mantissa, norm.scale)])


# Clipping by a norm ---------------------------------------------------------------------------------------------------


def scale(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> list[Array]:
    """The arrays clipped to max_norm, given their norm."""
    if is_sharded(arrays):
        scaled = scale([local(a) for a in arrays], norm, max_norm, nonfinite)
        return [shard_of(a, s) for a, s in zip(arrays, scaled, strict=True)]
    factors, zero = _with_policy(clip_factors(norm, max_norm), nonfinite)
    scaled = [_times(a, f) for a, f in zip(arrays, _needed(arrays, factors), strict=True)]
    return scaled if zero is None else [torch.where(zero.to(s.device), 0.0, s) for s in scaled]


def scale_(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> None:
    """The same in place. Where nothing is clipped, and the host or a kernel knows, nothing is written."""
    if (kernels := _kernels(arrays)) and kernels.scale_(arrays, norm, max_norm, nonfinite):
        return
    arrays = [local(a) for a in arrays] if is_sharded(arrays) else arrays
    factors, zero = _with_policy(clip_factors(norm, max_norm), nonfinite)
    needed = _needed(arrays, factors)
    zeros = [] if zero is None or (_on_host([*arrays, zero]) and not zero) else [zero.to(a.device) for a in arrays]
    _multiply_(zip(arrays, needed, strict=True))
    for a, z in zip(arrays, zeros, strict=False):
        a.masked_fill_(z, 0.0)


def scale_each(arrays: Sequence[Array], norms: Sequence[Norm], limits: Sequence[Any]) -> list[Array]:
    """The arrays, or their slices, each clipped to its own limit, given their norms."""
    clipped = []
    for a, factors in zip(arrays, _factors_each(arrays, norms, limits), strict=True):
        sliced = is_sharded(factors)  # the norms of slices are sharded as the slices are
        clipped.append(_times(a, factors) if sliced else shard_of(a, _times(local(a), factors)))
    return clipped


def scale_each_(arrays: Sequence[Array], norms: Sequence[Norm], limits: Sequence[Any]) -> None:
    """The same in place. Where nothing is clipped, and the host or a kernel knows, nothing is written."""
    if (kernels := _kernels(arrays)) and all(n.value.ndim == 0 for n in norms) and not isinstance(limits[0], Norm):
        left = [
            i
            for i, (a, n, c) in enumerate(zip(arrays, norms, limits, strict=True))
            if not kernels.scale_([a], n, c, "nan")
        ]
        arrays, norms, limits = ([column[i] for i in left] for column in (arrays, norms, limits))
    pairs = zip(arrays, _factors_each(arrays, norms, limits), strict=True)
    _multiply_((a if is_sharded(f) else local(a), f) for a, f in pairs)


def clip_factors(norm: Norm, limit: Any) -> tuple[tuple[Array, Array], Array]:
    """The clipping rule: the two factors to multiply by, and where the norm is not finite although it is to be clipped.

    The second factor is 1, unless c/n is too small for float32: then each of them is its root.
    """
    device = norm.value.device
    limit = limit if isinstance(limit, Norm) else Norm(limit, limit, 1.0)
    n, s, c_value, c, c_scale = (_scalar(x, torch.float64, device) for x in (*norm[1:], *limit))
    unit = c_scale / s
    far = unit.isinf()  # as the reciprocal of a subnormal scale is
    unscaled = c * torch.where(far, c_scale, unit) / torch.where(far, s, 1.0)
    below = norm.value <= c_value.to(norm.value.dtype)
    kept = torch.where(norm.value.isinf(), (unscaled / n).detach() >= 1, below) | (c == math.inf)
    bad = ~kept & ~torch.isfinite(n)
    n = torch.where(kept | bad, 1.0, n)  # where the branch not taken divides by zero, its derivative would be NaN
    ratio = torch.where(kept, 1.0, torch.where((c >= 0) & ~bad, unscaled / n, math.nan))
    tiny = (ratio < TINY) & (c > 0)
    if _on_host([tiny]) and not tiny.any():
        return (ratio, torch.ones((), dtype=torch.float64, device=device)), bad
    root = torch.sqrt(torch.where(tiny, c, 1.0)) * (torch.sqrt(c_scale) / torch.sqrt(s)) / torch.sqrt(n)
    return (torch.where(tiny, root, ratio), torch.where(tiny, root, 1.0)), bad


def _with_policy(ruled: tuple[tuple[Array, Array], Array], nonfinite: str) -> tuple[tuple[Array, Array], Array | None]:
    """The factors and, if not None, whether to set zeros instead."""
    (first, second), bad = ruled
    if nonfinite == "keep":
        return (torch.where(bad, 1.0, first), second), None
    return (first, second), bad if nonfinite == "zero" else None


def _factors_each(arrays: Sequence[Array], norms: Sequence[Norm], limits: Sequence[Any]) -> list[list[Array]]:
    """The needed factors of each array. On the host they are calculated together: a thousand small calls are felt."""
    needed: list[list[Array]] = []
    for run in _runs(norms):
        joined, restore = _joined(norms[run])
        if restore is None:
            for a, n, c in zip(arrays[run], norms[run], limits[run], strict=True):
                needed += _needed([a], clip_factors(n, c)[0])
            continue
        factors, _ = clip_factors(joined[0], _joined_limits(limits[run], norms[run], joined[0]))
        sizes = torch.tensor([0, *(n.value.numel() for n in norms[run])], device=CPU).cumsum(0)
        columns = []
        for f in (f.to(joined[0].value.dtype) for f in factors if (f != 1).any()):
            clipped = (f != 1).cumsum(0)
            until = torch.cat([clipped.new_zeros(1), clipped])[sizes].tolist()
            columns.append(
                [x if b > a else None for x, (a, b) in zip(restore(f), itertools.pairwise(until), strict=True)]
            )
        rows = zip(*columns, strict=True) if columns else [()] * (len(sizes) - 1)
        needed += [[f for f in row if f is not None] for row in rows]
    return needed


def _joined_limits(limits: Sequence[Any], norms: Sequence[Norm], joined: Norm) -> Any:
    """Limits in the order of joined norms."""
    if isinstance(limits[0], Norm):
        return _joined(limits)[0][0]
    if all(c is limits[0] for c in limits) and getattr(limits[0], "ndim", 0) == 0:
        return limits[0]
    pairs = zip(limits, norms, strict=True)
    return _flatten_dense_tensors([_scalar(c, torch.float64, CPU).expand_as(n.value) for c, n in pairs])


def _runs(norms: Sequence[Norm]) -> Iterator[slice]:
    """The norms in runs that one thread calculates with."""
    start, size = 0, 0
    for i, norm in enumerate(norms):
        if i > start and size + norm.value.numel() >= JOIN:
            yield slice(start, i)
            start, size = i, 0
        size += norm.value.numel()
    if norms:
        yield slice(start, len(norms))


def _joined(norms: Sequence[Norm]) -> tuple[list[Norm], Any]:
    """Norms in one flat Norm where the host knows all of them, and what takes a column of it apart again."""
    known = [x for norm in norms for x in norm if isinstance(x, torch.Tensor)]
    if len(norms) < 2 or not _on_host(known) or len({norm.value.dtype for norm in norms}) > 1:
        return list(norms), None
    columns = (
        [x if isinstance(x, torch.Tensor) else _scalar(x, torch.float64, CPU) for x in c]
        for c in zip(*norms, strict=True)
    )
    flat = Norm(*map(_flatten_dense_tensors, columns))
    return [flat], lambda column: _unflatten_dense_tensors(column, [norm.value for norm in norms])


def _needed(arrays: Sequence[Array], factors: Sequence[Array]) -> list[list[Array]]:
    """For each array the factors as it is multiplied by them, without those that the host knows to be 1.

    Such a factor is a constant, so that nothing is lost of a derivative, and autograd need not keep what it multiplies.
    """
    if _on_host([f.detach() for f in factors]):
        factors = [f for f in factors if (f != 1).any()]
    cast: dict[Any, list[Array]] = {}
    needed = []
    for x in arrays if factors else ():
        kind = x.dtype, x.is_cpu or x.device
        if kind not in cast:
            cast[kind] = [f.to(x.device, _accumulator(x.dtype)) for f in factors]
        needed.append(cast[kind])
    return needed or [[]] * len(arrays)


def _times(x: Array, factors: Sequence[Array]) -> Array:
    """A new array; half precision is multiplied in float32, and rounded once."""
    if not factors:
        return x.clone()
    product = x.to(torch.float32) if x.dtype in HALF else x
    for f in factors:
        product = product * f
    return product.to(x.dtype)


def _multiply_(pairs: Iterable[tuple[Array, Sequence[Array]]]) -> None:
    """Multiplies arrays in place, each by its factors. All that can fail is done before the first write."""
    lazy = not torch.compiler.is_compiling()  # a compiler keeps no array so
    runs: list[tuple[list[Array], Sequence[Array]]] = []
    for x, factors in pairs:
        if not factors:
            continue
        x = _physical(x) if lazy and (x.is_conj() or x.is_neg()) else x
        if runs and runs[-1][1] is factors:
            runs[-1][0].append(x)
        else:
            runs.append(([x], factors))
    planned: dict[Any, tuple[list[Array], list[Array]]] = {}
    halves = []
    for run, factors in runs:  # of one dtype and device
        if run[0].dtype in HALF and len(factors) > 1:
            halves += [(x, factors) for x in run]
            continue
        for round, f in enumerate(factors):
            xs, fs = planned.setdefault((round, run[0].dtype, run[0].device), ([], []))
            xs += run
            fs += [f] * len(run)
    for xs, fs in planned.values():
        # One 0-d tensor is faster than a number, and is not rounded to half precision before it multiplies.
        torch._foreach_mul_(xs, fs[0] if all(f is fs[0] for f in fs) and not fs[0].ndim else fs)
    for x, factors in halves:
        for chunk in x.view(-1).split(CHUNK) if x.is_contiguous() else (x,):
            chunk.copy_(_times(chunk, factors))


def _physical(x: Array) -> Array:
    """The numbers of a lazily conjugated or negated array as they lie in memory: a factor is the same for them."""
    x = x.conj() if x.is_conj() else x
    return torch._neg_view(x) if x.is_neg() else x


# Clipping by value ----------------------------------------------------------------------------------------------------


def clamp(arrays: Sequence[Array], low: Any, high: Any) -> list[Array]:
    """The arrays with each element moved into [low, high]; NaN stays."""
    return [shard_of(a, torch.clamp(x, *limits)) for a, x, limits in _limited(arrays, low, high)]


def clamp_(arrays: Sequence[Array], low: Any, high: Any) -> None:
    """The same in place."""
    for _, x, limits in list(_limited(arrays, low, high)):
        x.clamp_(*limits)


def _limited(arrays: Sequence[Array], low: Any, high: Any) -> Iterator[tuple[Array, Array, tuple[Array, Array]]]:
    """Each array, this rank's part of it, and the limits in its dtype and on its device."""
    limits: dict[Any, tuple[Array, Array]] = {}
    for a in arrays:
        x = local(a)
        if (x.dtype, x.device) not in limits:
            limits[x.dtype, x.device] = _scalar(low, x.dtype, x.device), _scalar(high, x.dtype, x.device)
        yield a, x, limits[x.dtype, x.device]
