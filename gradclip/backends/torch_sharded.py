"""PyTorch's DTensors, of which each rank holds a part: FSDP2 and tensor parallel training make them."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

MAX = torch.finfo(torch.float64).max

Array = Any  # torch.Tensor


def is_sharded(arrays: Sequence[Any]) -> bool:
    """Whether there is a DTensor; only who has imported their module can have made one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(a, module.DTensor) for a in arrays)


def local(x: Array) -> Array:
    """This rank's part."""
    return x.to_local() if is_sharded([x]) else x


def shard_of(x: Array, part: Array) -> Array:
    """An array like x, of which this is the rank's part."""
    if not is_sharded([x]):
        return part
    return type(x).from_local(part, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())


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

    norms = [pair([a for a in arrays if not isinstance(a, DTensor)], arrays[0].device)]
    meshes: dict[Any, dict[tuple[bool, ...], list[Array]]] = {}
    for a in arrays:
        if isinstance(a, DTensor):
            if any(p.is_partial() for p in a.placements):  # a sum that is still to be taken
                a = a.redistribute(placements=[Replicate() if p.is_partial() else p for p in a.placements])
            same = tuple(p.is_replicate() for p in a.placements)
            meshes.setdefault(a.device_mesh, {}).setdefault(same, []).append(a.to_local())
    for mesh, groups in meshes.items():
        own = torch.stack([pair(its, its[0].device) for its in groups.values()])
        places = own.new_zeros(*mesh.shape, *own.shape)
        if coordinate := mesh.get_coordinate():
            places[tuple(coordinate)] = own
        line = _one_axis(mesh)
        every = DTensor.from_local(places, line, [Partial()] * line.ndim, run_check=False).full_tensor()
        for i, same in enumerate(groups):
            first = tuple(0 if its else slice(None) for its in same)
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
    """x so placed that each rank has elements along these axes, for nothing has no maximum."""
    from torch.distributed.tensor import Replicate

    ranks = [1] * x.ndim
    for mesh_axis, its in enumerate(x.placements):
        if its.is_shard():
            ranks[its.dim] *= x.device_mesh.size(mesh_axis)
    # Cut into k parts of equal size, rounded up, k² elements or more leave some for the last part.
    short = [its.is_shard() and its.dim in axis and x.shape[its.dim] < ranks[its.dim] ** 2 for its in x.placements]
    return x.redistribute(placements=[Replicate() if s else its for s, its in zip(short, x.placements, strict=True)])
