"""How the ranks of a program that was written for pplx-kernels become a world of Shunt."""

from __future__ import annotations

import os
import socket

import torch

from ..._errors import InvalidArgumentError, UnavailableError
from ..._launch import transports
from ..._world import World, current_world, has_current_world, set_current_world


def transport_of(world_size: int) -> str:
    """What carries the world: what SHUNT_TRANSPORT says, else the memory of GPUs that PyTorch and this build see.

    One GPU for each rank: cuda_ipc; more ranks than GPUs are on several nodes, which nvshmem joins.
    """
    named = os.environ.get("SHUNT_TRANSPORT")
    if named or not torch.cuda.is_available():
        return named or "auto"
    here = "cuda_ipc" if world_size <= torch.cuda.device_count() else "nvshmem"
    return here if any(one.name == here and one.available for one in transports()) else "auto"


def free_address() -> tuple[str, int, str]:
    """Where ranks can meet a listener of this process: its address as others see it, a free port, and its host."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as one:
        one.bind(("", 0))
        return host, one.getsockname()[1], socket.gethostname()


def join(rank: int, world_size: int, address: str, port: int, host: str) -> World:
    """Joins and makes the world the current one."""
    if address == "127.0.0.1" and host != socket.gethostname():
        raise InvalidArgumentError(
            f"pplx_kernels: rank 0 is on {host} and rank {rank} on {socket.gethostname()}, but MASTER_ADDR is not set "
            "where rank 0 is; it must say where others reach it"
        )
    world = World.join(rank, world_size, address, port, transport=transport_of(world_size))
    set_current_world(world)
    return world


def world_of(rank: int, world_size: int) -> World:
    """The current world, or the one that the process group or torchrun's variables describe. Collective."""
    if has_current_world():
        world = current_world()
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        place = [free_address()] if torch.distributed.get_rank() == 0 else [None]
        torch.distributed.broadcast_object_list(place, src=0)
        assert place[0] is not None
        world = join(torch.distributed.get_rank(), torch.distributed.get_world_size(), *place[0])
    elif "RANK" in os.environ and "LOCAL_RANK" in os.environ:
        world = World.from_env(transport=transport_of(int(os.environ.get("WORLD_SIZE", "1"))))
        set_current_world(world)
    else:
        raise UnavailableError(
            "pplx_kernels: this process is no rank yet; run it inside shunt.run_ranks, under torchrun, with a "
            "torch.distributed process group, or call nvshmem_init"
        )
    if (rank, world_size) != (world.rank, world.size):
        raise InvalidArgumentError(
            f"pplx_kernels: rank {rank} of {world_size} was given, but this process is rank "
            f"{world.rank} of {world.size}"
        )
    return world
