"""Cases of test_world.py that open sockets: python network_cases.py CASE, inside a network namespace of its own."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
import time

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


def sleeps(world):
    os.write(1, f"{os.getpid()}\n".encode())
    time.sleep(1000)


def dies(start):
    """Ranks that were started by ``start`` end when the process that started them is killed."""
    text = f"import network_cases, shunt; shunt.run_ranks(network_cases.sleeps, 2, start={start!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(os.path.abspath(__file__))
    )
    assert process.stdout is not None
    ranks = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in ranks):
        assert time.monotonic() < until, "a rank outlived its parent"
        time.sleep(0.02)


def spawn_dies():
    dies("spawn")


def closed_meanwhile(world, mark):
    """Rank 0 waits for rank 1, which waits for what rank 0's second thread writes once it has closed the world."""
    if world.rank == 1:
        while not os.path.exists(mark):
            time.sleep(0.01)
        world.barrier()
        return True

    def other():
        try:
            # A constructor that began first would be a step that rank 1 does not take.
            time.sleep(2)
            while True:
                try:
                    shunt.AllToAll(world, dataclasses.replace(CONFIG, num_experts=-1))
                except shunt.InvalidArgumentError:
                    pass  # The wait has not begun.
                except shunt.InvalidStateError as error:
                    assert "another thread" in str(error), error
                    break
            world.close()
        finally:
            with open(mark, "w"):
                pass

    second = threading.Thread(target=other)
    second.start()
    while not world.closed:
        try:
            world.barrier()
            break
        except shunt.InvalidStateError:
            pass  # The other thread was in its call just then.
    second.join()
    return world.closed


def closed():
    """A world that another thread closes while this one waits in it: the wait goes on to its end."""
    with tempfile.TemporaryDirectory() as folder:
        assert shunt.run_ranks(closed_meanwhile, 2, os.path.join(folder, "mark"), start="spawn") == [True, True]


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


def agent():
    """Under torchrun itself, whose store listens at MASTER_PORT."""
    if "RANK" not in os.environ:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "3", "--master_port", "29515"]
        raise SystemExit(subprocess.run([*command, __file__, "agent"], check=False).returncode)
    rank = int(os.environ["RANK"])
    with shunt.World.from_env() as world:
        assert (world.rank, world.size) == (rank, 3)
        assert step(world, CONFIG) == (rank, False)
    assert shunt.launch(step, CONFIG) == [(rank, False)]


def mpirun():
    """Four interpreters under Open MPI: each is a rank, whose world ends with the call."""
    if "OMPI_COMM_WORLD_RANK" not in os.environ:
        loopback = ["--mca", "btl_tcp_if_include", "lo", "--mca", "oob_tcp_if_include", "lo"]
        command = ["mpirun", "-n", "4", "--oversubscribe", "--bind-to", "none", *loopback]
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        ended = subprocess.run(
            [*command, sys.executable, __file__, "mpirun"],
            env=os.environ | root, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        lines = sorted(one for one in ended.stdout.splitlines() if one.startswith("rank "))
        assert lines == [f"rank {rank} of 4" for rank in range(4)], ended.stdout + ended.stderr
        return
    for transport in ("auto", "mpi"):
        for rank, valid in shunt.launch(step, CONFIG, transport=transport):
            assert rank == int(os.environ["OMPI_COMM_WORLD_RANK"])
            assert not valid
    os.write(1, f"rank {rank} of {os.environ['OMPI_COMM_WORLD_SIZE']}\n".encode())


def join_late():
    """Who does not come is named."""
    try:
        shunt.World.join(0, 2, "127.0.0.1", 29512, start_deadline=0.5)
    except shunt.DeadlineError as error:
        assert "1" in str(error), error
    else:
        raise AssertionError("a missing rank was not reported")


if __name__ == "__main__":
    cases = (spawn, spawn_failure, torchrun, process_group, agent, mpirun, join_late, spawn_dies, closed)
    {case.__name__: case for case in cases}[sys.argv[1]]()
