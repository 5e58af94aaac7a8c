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
    base = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "torchrun"], env=os.environ | base | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(3)
    ]
    assert [one.wait() for one in ranks] == [0, 0, 0]


def join_late():
    """Who does not come is named."""
    try:
        shunt.World.join(0, 2, "127.0.0.1", 29512, start_deadline=0.5)
    except shunt.DeadlineError as error:
        assert "1" in str(error), error
    else:
        raise AssertionError("a missing rank was not reported")


if __name__ == "__main__":
    {"spawn": spawn, "spawn_failure": spawn_failure, "torchrun": torchrun, "join_late": join_late}[sys.argv[1]]()
