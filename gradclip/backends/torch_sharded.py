"""PyTorch's DTensors, of which each rank holds a part: FSDP2 and tensor parallel training make them."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

MAX = torch.finfo(torch.float64).max

Array = Any  # torch.Tensor


def is_sharded(arrays: Sequence[Any]) -> bool:
    """Whether there is a DTensor. Until their module is imported, there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(a, module.DTensor) for a in arrays)


def local(x: Array) -> Array:
    """What this rank holds of an array; one that is not sharded it holds whole."""
    module = sys.modules.get("torch.distributed.tensor")
    return x if module is None or not isinstance(x, module.DTensor) else x.to_local()


def shard_of(x: Array, part: Array) -> Array:
    """An array like x, of which this is the rank's part."""
    if not is_sharded([x]):
        return part
    return type(x).from_local(part, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())


def whole(x: Any) -> Any:
    """A number or a 0-d tensor as this rank can calculate with it, where it may be a DTensor."""
    return x.full_tensor() if is_sharded([x]) and x.ndim == 0 else x


def as_norm_of(arrays: Sequence[Any], norm: Array) -> Array:
    """The norm of arrays as PyTorch gives it: where all are DTensors of one mesh, one that every rank of it holds."""
    given = [a for a in arrays if a is not None]
    if not is_sharded(given[:1]):
        return norm
    from torch.distributed.tensor import DTensor, Replicate

    mesh = given[0].device_mesh
    if not all(isinstance(a, DTensor) and a.device_mesh == mesh for a in given):
        return norm
    return DTensor.from_local(norm, mesh, [Replicate()] * mesh.ndim, run_check=False)


def measure_shards(
    arrays: Sequence[Array], ord: float, pair: Callable[[Sequence[Array], torch.device], Array]
) -> tuple[Array, Array]:
    """The norm of the whole arrays as mantissa and scale, the same on every rank.

    All ranks learn of the parts' norms, and join them alike. ``pair(arrays, device)`` gives mantissa and scale of the
    norm of arrays that are not sharded.

    Along an axis of the mesh, an array is cut into parts or every rank holds the same; then only the first one counts.
    All arrays of a mesh share one exchange: each rank adds its norms to zeros in its own place.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    alone: list[Array] = []
    placed: dict[Any, list[Array]] = {}  # what is asked of placements is asked once for all arrays that share them
    for a in arrays:
        if isinstance(a, DTensor):
            placed.setdefault((a.device_mesh, a.placements), []).append(a)
        else:
            alone.append(a)
    meshes: dict[Any, dict[tuple[bool, ...], list[Array]]] = {}
    for (mesh, placements), shards in placed.items():
        if any(p.is_partial() for p in placements):  # a sum that is still to be taken
            placements = tuple(Replicate() if p.is_partial() else p for p in placements)
            shards = [a.redistribute(placements=placements) for a in shards]
        same = tuple(p.is_replicate() for p in placements)
        meshes.setdefault(mesh, {}).setdefault(same, []).extend(a.to_local() for a in shards)
    norms = [pair(alone, arrays[0].device)]
    for mesh, groups in meshes.items():
        own = torch.stack([pair(held, held[0].device) for held in groups.values()])
        places = own.new_zeros(*mesh.shape, *own.shape)
        if coordinate := mesh.get_coordinate():
            places[tuple(coordinate)] = own
        line = _one_axis(mesh)
        every = DTensor.from_local(places, line, [Partial()] * line.ndim, run_check=False).full_tensor()
        for i, same in enumerate(groups):
            first = tuple(0 if is_same else slice(None) for is_same in same)
            norms += every[(*first, ..., i, slice(None))].reshape(-1, 2)
    mantissa, scale = torch.stack([n.to(arrays[0].device) for n in norms]).unbind(1)
    largest = torch.where(mantissa > 0, scale, 0.0).amax()
    largest = torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(mantissa * (scale / largest), ord)
    return torch.where(mantissa.isfinite().all(), norm.clamp(max=MAX), norm), largest


def _one_axis(mesh: Any) -> Any:
    """The same ranks along one axis, for a sum over a mesh is an exchange for each axis.

    The group of all ranks is there already. To make one of some, all ranks would have to take part: a mesh of several
    axes that is not the whole world keeps them, unless its owner has flattened it, which PyTorch then finds.
    """
    if mesh.ndim == 1 or mesh.size() < torch.distributed.get_world_size():
        return mesh
    return type(mesh).from_group(torch.distributed.group.WORLD, mesh.device_type)


def nowhere_empty(x: Array, axis: tuple[int, ...]) -> Array:
    """x so placed that each rank has elements along these axes: a slice without any has no maximum."""
    from torch.distributed.tensor import Replicate

    ranks = [1] * x.ndim
    for mesh_axis, p in enumerate(x.placements):
        if p.is_shard():
            ranks[p.dim] *= x.device_mesh.size(mesh_axis)
    # Cut into k parts of equal size, rounded up, k² elements or more leave some for the last part.
    short = [p.is_shard() and p.dim in axis and x.shape[p.dim] < ranks[p.dim] ** 2 for p in x.placements]
    return x.redistribute(placements=[Replicate() if s else p for s, p in zip(short, x.placements, strict=True)])
