"""Cases of test_world.py that open sockets: python network_cases.py CASE, inside a network namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

import shunt


def step(world, config):
    """One step whose experts double; the sum of what came back."""
    moe = shunt.AllToAll(world, config)
    ids, weights = shunt.route("uniform", tokens=4, experts=6, top_k=2, groups=world.size, group=world.rank)
    tokens = np.full((4, 8), world.rank + 1, np.float32)
    received = moe.dispatch(tokens, ids)
    out = moe.combine(2 * received.rows, weights)
    np.testing.assert_allclose(out, 2 * tokens, rtol=1e-5)
    world.barrier()
    return world.rank, received.valid


CONFIG = shunt.Config(
    max_tokens=4, num_experts=6, top_k=2, hidden=8, token_dtype="float32", expert_dtype="float32", out_dtype="float32"
)


def fails(world):
    if world.rank == 1:
        raise ValueError("on purpose")
    world.barrier(20)


def spawn():
    assert shunt.run_ranks(step, 3, CONFIG, start="spawn") == [(0, False), (1, False), (2, False)]


def spawn_failure():
    try:
        shunt.run_ranks(fails, 2, start="spawn")
    except shunt.RanksFailedError as error:
        assert "rank 1 of 2: ValueError: on purpose" in str(error), error
        assert error.outcomes[0].code == "peer_lost", error.outcomes
        assert "ended with an error" in error.outcomes[0].message, error.outcomes
    else:
        raise AssertionError("a failed rank was not reported")


def torchrun():
    """torchrun's variables: World.from_env twice, and launch."""
    if "RANK" in os.environ:
        for _ in range(2):
            with shunt.World.from_env(transport="shm") as world:
                assert step(world, CONFIG) == (int(os.environ["RANK"]), False)
        assert shunt.launch(step, CONFIG, transport="shm") == [(int(os.environ["RANK"]), False)]
        return
    torchrun_variables("torchrun", 3, "29511")


def torchrun_variables(case, size, port):
    """Starts ``case`` again, as the ranks that torchrun would start."""
    base = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, case], env=os.environ | base | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(size)
    ]
    assert [one.wait() for one in ranks] == [0] * size


def process_group():
    """Beside a process group of PyTorch: World.from_env, and the interface of pplx-kernels with and without it."""
    if "RANK" not in os.environ:
        # Without torchrun's agent the group's own store listens at MASTER_PORT.
        os.environ["SHUNT_PORT"] = "29514"
        torchrun_variables("process_group", 2, "29513")
        return
    import torch

    from shunt.compat.pplx_kernels import AllToAll, nvshmem

    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    sum_of = torch.ones(1)
    torch.distributed.all_reduce(sum_of)
    with shunt.World.from_env() as world:
        assert step(world, CONFIG) == (rank, False)
    for way in ("group", "unique id"):
        if way == "unique id":
            uid = nvshmem.nvshmem_get_unique_id() if rank == 0 else nvshmem.nvshmem_alloc_empty_unique_id()
            torch.distributed.broadcast(uid, src=0)
            assert nvshmem.nvshmem_init(uid, rank, 2) == 0
        ata = AllToAll.internode(4, 2, 1, rank, 2, 1, 8, 16, 0)
        counts, rows = torch.zeros(1, dtype=torch.int32), torch.zeros(1, 8, 8, dtype=torch.bfloat16)
        tokens, ids = torch.full((3, 8), 1.0 + rank, dtype=torch.bfloat16), torch.full((3, 1), 1 - rank)
        ata.dispatch(counts, rows, None, tokens, None, ids, None)
        assert int(counts) == 3
        out = torch.zeros(3, 8, dtype=torch.bfloat16)
        ata.combine(out, ids, torch.ones(3, 1), 2 * rows, None)
        assert torch.equal(out, 2 * tokens)
        ata.destroy()
        nvshmem.nvshmem_finalize()
    torch.distributed.all_reduce(sum_of)
    assert float(sum_of) == 4
    torch.distributed.destroy_process_group()


def join_late():
    """Who does not come is named."""
    try:
        shunt.World.join(0, 2, "127.0.0.1", 29512, start_deadline=0.5)
    except shunt.DeadlineError as error:
        assert "1" in str(error), error
    else:
        raise AssertionError("a missing rank was not reported")


if __name__ == "__main__":
    cases = (spawn, spawn_failure, torchrun, process_group, join_late)
    {case.__name__: case for case in cases}[sys.argv[1]]()
