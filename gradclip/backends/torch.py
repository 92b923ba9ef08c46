"""PyTorch: on the CPU a plain ``if`` decides; on a GPU, under autograd or a compiler, the factor stays a tensor."""

import functools
import importlib.util
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch._utils import _flatten_dense_tensors

from .torch_sharded import is_sharded as _sharded
from .torch_sharded import local as _local
from .torch_sharded import measure_shards, whole
from .torch_sharded import nowhere_empty as _nowhere_empty
from .torch_sharded import shard_of as _shard_of

NAME = "PyTorch"
BLOCK = 512  # elements whose squares are summed in their own precision; blocks are joined in float64
JOIN = 1 << 15  # elements; from here on PyTorch uses several threads, and waiting for them costs small arrays too much
CHUNK = 1 << 18  # elements widened at a time
TINY = 2.0**-126  # the smallest normal float32
WIDE = (torch.float64, torch.complex128)
HALF = (torch.float16, torch.bfloat16)
MAX = torch.finfo(torch.float64).max
UNIT_AXIS = 0  # of a weight of shape (out, in, …)

Array = Any  # torch.Tensor


class Norm(NamedTuple):
    """A norm: ``value`` as it is returned, and the exact one, mantissa·scale, which ``value`` may be too narrow for.

    Mantissa and scale are numbers where the host knows them, else float64 tensors.
    """

    value: Array
    mantissa: Any
    scale: Any


# What rules.py asks about an array ------------------------------------------------------------------------------------


def is_array(x: object) -> bool:
    return isinstance(x, torch.Tensor)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def host_value(x: Array) -> float | None:
    """The value of a 0-d array where the host can read it without waiting, else None."""
    x = whole(x)
    return x.item() if _on_host([x]) else None


def is_traced(arrays: Sequence[Array]) -> bool:
    return torch.compiler.is_compiling()


def why_not_writable(x: Array) -> str | None:
    if x.requires_grad and (x.is_leaf or isinstance(x, torch.nn.Parameter)):
        return "is a parameter: clipping it would change the weights; pass its .grad"
    if x.is_inference() and not torch.is_inference_mode_enabled():
        return "was made in inference mode, and is read-only outside of it"
    if (
        x.layout is torch.strided
        and not x.is_contiguous()
        and any(stride == 0 and n > 1 for stride, n in zip(x.stride(), x.shape, strict=True))
    ):
        return "is expanded: several of its elements share one place in memory"
    return None


def all_finite(x: Array) -> bool:
    if _sharded([x]):  # every rank must give the same answer
        return math.isfinite(float(measure([x], math.inf).mantissa))
    return bool(torch.isfinite(x).all())


def _on_host(arrays: Sequence[Any]) -> bool:
    """Whether a branch on values is free: no device to wait for, no derivative to carry, nothing that traces."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    no_grad = not torch.is_grad_enabled()
    return all(a.is_cpu and type(a) in _PLAIN and (no_grad or not a.requires_grad) for a in arrays)


_PLAIN = (torch.Tensor, torch.nn.Parameter)

writing = torch.no_grad  # the context in which rules.py writes in place


def _kernels(arrays: Sequence[Array]) -> Any:
    """The module of CUDA kernels, where arrays like these can use it: for no derivative, with nothing that traces."""
    if torch.compiler.is_compiling() or not arrays or not arrays[0].is_cuda:
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
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
    if x.layout is torch.strided:
        return False
    if x.layout is torch.sparse_coo:
        return True
    raise TypeError(f"an array has the layout {x.layout}; gradclip takes torch.strided and torch.sparse_coo")


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
    if _sharded(arrays):
        parts = [_local(a) for a in arrays]  # lie on the host where the norm does, and then the host decides
        return _norm(parts, *measure_shards(arrays, ord, lambda its, device: _pair(measure(its, ord), device)))
    if ord == 2 and (kernels := _kernels(arrays)) and (measured := kernels.measure(arrays)):
        return Norm(*measured)
    groups = _by_dtype(arrays)
    if ord == 2 and _on_host(arrays):
        norm, lost = 0.0, 0.0
        for dtype, its in groups.items():
            its_norm, size = _two_norm(its, _accumulator(dtype))
            norm = math.hypot(norm, its_norm)
            # A square below the smallest normal number is lost. That must not be felt in the sum.
            lost += size * (2.0**-1022 if dtype in WIDE else 2.0**-126)
        if math.sqrt(lost) * 2**11 <= norm < math.inf:
            return _norm(arrays, norm, 1.0)
    if ord == 2 and not any(dtype in WIDE for dtype in groups):  # float64 holds the square of every float32
        return _norm(arrays, _join([torch.linalg.vector_norm(c) for c in _widened(arrays)], 2), 1.0)
    peak = _join([p.abs().amax() for a in arrays for p in _parts(a) if p.numel()], math.inf).detach()
    scale = torch.where((peak > 0) & torch.isfinite(peak), peak, 1.0)
    norms = [torch.linalg.vector_norm(c / scale.to(c.device), ord) for c in _widened(arrays)]
    return _norm(arrays, torch.where(torch.isfinite(peak), _join(norms, ord).clamp(max=MAX), peak), scale)


def given(norm: Any, arrays: Sequence[Array]) -> Norm:
    """A norm that the caller has measured."""
    norm = whole(norm)
    return _norm(
        [_local(a) for a in arrays], norm.to(torch.float64) if isinstance(norm, torch.Tensor) else float(norm), 1.0
    )


def _norm(arrays: Sequence[Array], mantissa: Any, scale: Any) -> Norm:
    tensors = [t for t in (mantissa, scale) if isinstance(t, torch.Tensor)]
    if tensors and _on_host([*arrays, *tensors]):
        mantissa, scale = float(mantissa), float(scale)
    dtype = torch.float64 if any(a.dtype in WIDE for a in arrays) else torch.float32
    device = arrays[0].device if arrays else tensors[0].device if tensors else torch.device("cpu")
    return Norm(_scalar(mantissa * scale, dtype, device), mantissa, scale)


def _scalar(x: Any, dtype: torch.dtype, device: torch.device) -> Array:
    """A number or 0-d tensor as one of this dtype, infinite if it does not fit; filling makes no GPU wait."""
    x = whole(x) if isinstance(x, torch.Tensor) else torch.full((), x, dtype=torch.float64, device=device)
    return x.to(device, dtype)


def _by_dtype(arrays: Sequence[Array]) -> dict[torch.dtype, list[Array]]:
    groups: dict[torch.dtype, list[Array]] = {}
    for a in arrays:
        groups.setdefault(a.dtype, []).append(a)
    return groups


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
                yield _flatten_dense_tensors(small).to(dtype)
                small, size = [], 0
            small.append(a)
            size += n
        elif a.dtype == dtype:
            yield _flat(a)
        else:
            yield from (chunk.to(dtype) for chunk in _flat(a).split(CHUNK))
    if small:
        yield _flatten_dense_tensors(small).to(dtype)


def _widened(arrays: Sequence[Array]) -> Iterator[Array]:
    """All elements in double precision, a chunk at a time; a compiler fuses the cast, and needs no chunks."""
    for a in arrays:
        wide = torch.complex128 if a.is_complex() else torch.float64
        chunks = (a,) if torch.compiler.is_compiling() else _flat(a).split(CHUNK)
        yield from (chunk.to(wide) for chunk in chunks if chunk.numel())


def _join(norms: Sequence[Array], ord: float) -> Array:
    """The norm of norms, on the device of the first; 0 if there are none."""
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    device = norms[0].device
    return torch.linalg.vector_norm(torch.stack([n.to(device, torch.float64) for n in norms]), ord)


def _pair(norm: Norm, device: torch.device) -> Array:
    return torch.stack([_scalar(x, torch.float64, device) for x in (norm.mantissa, norm.scale)])


# Clipping by a norm ---------------------------------------------------------------------------------------------------


def scale(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> list[Array]:
    """The arrays clipped to max_norm, given their norm."""
    if _sharded(arrays):
        scaled = scale([_local(a) for a in arrays], norm, max_norm, nonfinite)
        return [_shard_of(a, s) for a, s in zip(arrays, scaled, strict=True)]
    factors, zero = _factors(arrays, norm, max_norm, nonfinite)
    scaled = [_times(a, factors) for a in arrays]
    return scaled if zero is None else [torch.where(zero.to(s.device), 0.0, s) for s in scaled]


def scale_(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> None:
    """The same in place. Where nothing is clipped, and the host or a kernel knows, nothing is written."""
    arrays = [_local(a) for a in arrays] if _sharded(arrays) else arrays
    if (kernels := _kernels(arrays)) and kernels.scale_(arrays, norm, max_norm, nonfinite):
        return
    factors, zero = _factors(arrays, norm, max_norm, nonfinite)
    if all(isinstance(f, float) for f in factors):
        for f in factors:
            for dtype, its in _by_dtype(arrays).items():
                # A 0-d tensor is faster than a number, and is not rounded to half precision before it multiplies.
                torch._foreach_mul_(its, torch.tensor(f, dtype=_accumulator(dtype)))
    else:
        for a in arrays:
            _times_(a, factors)
    if zero is not None:
        for a in arrays:
            a.masked_fill_(zero.to(a.device), 0.0)


def _factors(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> tuple[Sequence[Any], Any]:
    """What to multiply by, one factor after the other, and, if not None, whether to set zeros instead."""
    max_norm = whole(max_norm)
    given = [max_norm] if isinstance(max_norm, torch.Tensor) else []
    if not isinstance(norm.mantissa, float) or not _on_host([*arrays, *given]):
        factors, bad = clip_factors(norm, max_norm)
        if nonfinite == "keep":
            return [torch.where(bad, 1.0, f) for f in factors], None
        return factors, bad if nonfinite == "zero" else None
    c, n, s = float(max_norm), norm.mantissa, norm.scale
    if c == math.inf or norm.value <= _scalar(c, norm.value.dtype, norm.value.device):
        return (), None
    if not math.isfinite(n):
        return ((math.nan,) if nonfinite == "nan" else ()), (torch.tensor(True) if nonfinite == "zero" else None)
    if c == 0 or c / n / s >= TINY:
        return (c / n / s,), None
    return (math.sqrt(c / n) / math.sqrt(s),) * 2, None


def clip_factors(norm: Norm, max_norm: Any) -> tuple[tuple[Array, Array], Array]:
    """The same without a branch, for one norm or an array of them; and which of them are not finite and count."""
    device = norm.value.device
    c, n, s = (_scalar(x, torch.float64, device) for x in (max_norm, norm.mantissa, norm.scale))
    keep = (norm.value <= c.to(norm.value.dtype)) | (c == math.inf)
    bad = ~keep & ~torch.isfinite(n)
    n = torch.where(keep | bad, 1.0, n)  # where the branch not taken divides by zero, its derivative would be NaN
    ratio = torch.where(keep, 1.0, torch.where((c >= 0) & ~bad, c / n / s, math.nan))
    tiny = (ratio < TINY) & (c > 0)  # too small for float32: multiply twice by its root
    root = torch.sqrt(torch.where(tiny, c / n, 1.0)) / torch.sqrt(s)
    return (torch.where(tiny, root, ratio), torch.where(tiny, root, 1.0)), bad


def _times(x: Array, factors: Sequence[Any]) -> Array:
    """A new array; half precision is multiplied in float32, and rounded once."""
    if not factors:
        return x.clone()
    wide = torch.float32 if x.dtype in HALF else x.dtype
    product = x.to(wide)
    for f in factors:
        product = product * (f.to(x.device, _accumulator(x.dtype)) if isinstance(f, torch.Tensor) else f)
    return product.to(x.dtype)


def _times_(x: Array, factors: Sequence[Array]) -> None:
    if x.dtype in HALF:
        x.copy_(_times(x, factors))
    else:
        for f in factors:
            x.mul_(f.to(x.device, _accumulator(x.dtype)))


# Clipping each slice by its own norm ----------------------------------------------------------------------------------


def slice_norms(x: Array, ord: float, axis: tuple[int, ...]) -> Norm:
    """The norms of the slices of x along axis, whose lengths become 1."""
    if _sharded([x]):  # to cut it would gather it on every rank
        return _slice_norms(_nowhere_empty(x, axis), ord, axis)
    kept = [i for i in range(x.ndim) if i not in axis]
    if not kept or torch.compiler.is_compiling():
        return _slice_norms(x, ord, axis)
    longest = max(kept, key=lambda i: x.shape[i])  # cut there, so that little is widened at a time
    step = max(1, CHUNK * x.shape[longest] // max(1, x.numel()))
    slabs = [_slice_norms(slab, ord, axis) for slab in x.split(step, longest)]
    return Norm(*(torch.cat(column, longest) for column in zip(*slabs, strict=True)))


def _slice_norms(x: Array, ord: float, axis: tuple[int, ...]) -> Norm:
    wide = x.to(torch.complex128 if x.is_complex() else torch.float64)
    if not x.numel():
        zeros = wide.real.new_zeros([1 if i in axis else n for i, n in enumerate(x.shape)])
        return Norm(zeros.to(_accumulator(x.dtype)), zeros, zeros + 1)
    peak = functools.reduce(torch.maximum, [p.abs().amax(axis, keepdim=True) for p in _parts(wide)]).detach()
    finite = torch.isfinite(peak)
    scale = torch.where(finite & (peak > 0), peak, 1.0)
    norm = torch.linalg.vector_norm(wide / scale, ord, axis, keepdim=True)
    mantissa = torch.where(finite, norm.clamp(max=MAX), peak)
    return Norm((mantissa * scale).to(_accumulator(x.dtype)), mantissa, scale)


def scale_slices(x: Array, norm: Norm, limit: Any) -> Array:
    """x with each slice clipped to its limit, given the norms of the slices."""
    return _times(x, clip_factors(norm, limit)[0])


def scale_slices_(x: Array, norm: Norm, limit: Any) -> None:
    """The same in place. Where nothing is clipped, and the host knows, nothing is written."""
    factors = clip_factors(norm, limit)[0]
    if needed := [f for f in factors if not _on_host([x, f]) or bool((f != 1).any())]:
        _times_(x, needed)


def at_least(x: Array, floor: float) -> Array:
    return x.clamp(min=floor)


# Clipping by value ----------------------------------------------------------------------------------------------------


def clamp(x: Array, low: Any, high: Any) -> Array:
    """x with each element moved into [low, high]; NaN stays."""
    local = _local(x)
    return _shard_of(x, torch.clamp(local, _scalar(low, x.dtype, local.device), _scalar(high, x.dtype, local.device)))


def clamp_(x: Array, low: Any, high: Any) -> None:
    x = _local(x)
    x.clamp_(_scalar(low, x.dtype, x.device), _scalar(high, x.dtype, x.device))
