"""How the ranks of a program that was written for pplx-kernels become a world of Shunt."""

from __future__ import annotations

import os
import socket

import torch

from ..._errors import InvalidArgumentError, UnavailableError
from ..._world import World, current_world, has_current_world, set_current_world


def free_address() -> tuple[str, int]:
    """Where ranks can meet a listener of this process: its address as others see it, and a free port."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as one:
        one.bind(("", 0))
        return host, one.getsockname()[1]


def join(rank: int, world_size: int, address: str, port: int) -> World:
    """Joins and makes the world the current one."""
    world = World.join(rank, world_size, address, port)
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
        world = World.from_env()
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
