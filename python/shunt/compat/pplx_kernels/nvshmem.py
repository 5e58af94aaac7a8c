"""The nvshmem helpers of pplx-kernels, over a world of Shunt.

A unique id carries the address where rank 0 listens; whoever calls ``nvshmem_get_unique_id`` must become rank 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from ..._errors import InvalidArgumentError
from ..._world import current_world, has_current_world, set_current_world
from ._meeting import free_address, join

_ID_BYTES = 128


def nvshmem_unique_id_size() -> int:
    """Bytes of a unique id."""
    return _ID_BYTES


def nvshmem_alloc_empty_unique_id() -> torch.Tensor:
    """[nvshmem_unique_id_size()] uint8, to be filled by a broadcast."""
    return torch.zeros(_ID_BYTES, dtype=torch.uint8)


def nvshmem_get_unique_id() -> torch.Tensor:
    """[nvshmem_unique_id_size()] uint8: where the ranks meet."""
    text = json.dumps(free_address()).encode()
    if len(text) > _ID_BYTES:
        raise InvalidArgumentError(f"nvshmem_get_unique_id: the name of this host is too long ({len(text)} bytes)")
    return torch.tensor(list(text.ljust(_ID_BYTES)), dtype=torch.uint8)


def nvshmem_init(uid: torch.Tensor, rank: int, world_size: int) -> int:
    """Collective. Becomes rank ``rank``; inside ``shunt.run_ranks`` and the like only checks. Returns 0."""
    if not has_current_world():
        try:
            address, port, host = json.loads(bytes(uid.tolist()).decode().strip())
        except ValueError:
            raise InvalidArgumentError("nvshmem_init: uid is not one of nvshmem_get_unique_id") from None
        join(rank, world_size, address, port, host)
    world = current_world()
    if (rank, world_size) != (world.rank, world.size):
        raise InvalidArgumentError(
            f"nvshmem_init: rank {rank} of {world_size} was given, but this process is rank "
            f"{world.rank} of {world.size}"
        )
    return 0


def nvshmem_finalize() -> None:
    """Ends the world of ``nvshmem_init``. Local."""
    if has_current_world():
        current_world().close()
    set_current_world(None)


def nvshmem_my_pe() -> int:
    """This rank."""
    return current_world().rank


def nvshmem_n_pes() -> int:
    """Number of ranks."""
    return current_world().size


def nvshmem_malloc(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A zeroed tensor. ``nvshmem_alltoall`` takes any tensor, so it is an ordinary one."""
    return torch.zeros(tuple(shape), dtype=dtype, device=device)


def nvshmem_barrier_all() -> None:
    """Collective. Returns when every rank has called it."""
    current_world().barrier()


def nvshmem_barrier_all_on_current_stream() -> None:
    """The same, once PyTorch's current stream has come to it where the world is on GPUs: this call waits for it."""
    world = current_world()
    if world.device is not None:
        torch.cuda.current_stream(world.device).synchronize()
    world.barrier()


def nvshmem_alltoall(dest: torch.Tensor, source: torch.Tensor) -> None:
    """Collective. Piece r of ``source`` goes to rank r, the piece from rank r to piece r of ``dest``."""
    if source.is_cuda or dest.is_cuda:
        # Through host memory: it carries what ranks tell each other, not what kernels move.
        there = torch.empty_like(dest, device="cpu")
        current_world().alltoall(source.cpu(), there)
        dest.copy_(there)
    else:
        current_world().alltoall(source, dest)
