"""Starting ranks, and what they do without an AllToAll."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import network_cases
import numpy as np
import pytest

import shunt


def test_results_in_rank_order():
    def rank(world, base, *, step):
        assert shunt.current_world() is world
        return base + step * world.rank, world.size, world.transport

    assert shunt.run_ranks(rank, 3, 10, step=2) == [(10, 3, "shm"), (12, 3, "shm"), (14, 3, "shm")]
    with pytest.raises(shunt.InvalidStateError, match="no current world"):
        shunt.current_world()


def test_large_results_and_none():
    values = shunt.run_ranks(lambda world: np.full(300_000, world.rank) if world.rank else None, 2)
    assert values[0] is None
    assert values[1].sum() == 300_000


def test_collectives():
    def rank(world):
        world.barrier()
        assert world.allgather(b"x" * world.rank) == [b"", b"x", b"xx"]
        long = bytes([world.rank]) * (400_000 if world.rank == 1 else 3)
        assert world.allgather(long) == [b"\0" * 3, b"\1" * 400_000, b"\2" * 3]
        assert world.allgather_object({"rank": world.rank})[2] == {"rank": 2}
        for size in (1, 100_000):
            send = np.arange(3 * size, dtype=np.int64).reshape(3, size) + 1_000_000 * world.rank
            receive = np.zeros_like(send)
            world.alltoall(send, receive)
            expected = np.arange(size) + world.rank * size + 1_000_000 * np.arange(3)[:, None]
            np.testing.assert_array_equal(receive, expected)
        with pytest.raises(shunt.InvalidArgumentError, match="a multiple of 3 ranks"):
            world.alltoall(np.zeros(4, np.uint8), np.zeros(4, np.uint8))
        world.barrier()

    shunt.run_ranks(rank, 3)


def test_an_exception_names_its_rank():
    def rank(world):
        if world.rank == 1:
            raise KeyError("no such expert")
        world.barrier()

    with pytest.raises(shunt.RanksFailedError, match=r"rank 1 of 3: KeyError: 'no such expert'") as raised:
        shunt.run_ranks(rank, 3)
    assert 'raise KeyError("no such expert")' in str(raised.value)
    assert raised.value.outcomes[0].code == "peer_lost"
    assert [one.exit_status != 0 for one in raised.value.outcomes] == [True] * 3


def test_an_error_keeps_its_code():
    def rank(world):
        if world.rank == 0:
            raise shunt.FileError("no such trace")

    with pytest.raises(shunt.RanksFailedError, match="rank 0 of 2: no such trace") as raised:
        shunt.run_ranks(rank, 2)
    assert raised.value.code == "io"


def test_exit_and_results_that_cannot_travel():
    with pytest.raises(shunt.RanksFailedError, match=r"rank 1 of 2: left its function by exit\(3\)"):
        shunt.run_ranks(lambda world: sys.exit(3 * world.rank), 2)
    assert shunt.run_ranks(lambda world: sys.exit(0), 2) == [None, None]
    with pytest.raises(shunt.RanksFailedError, match="cannot be pickled"):
        shunt.run_ranks(lambda world: lambda: 0, 1)
    with pytest.raises(shunt.InvalidArgumentError, match="1 to 1024 are allowed"):
        shunt.run_ranks(lambda world: 0, 0)
    with pytest.raises(shunt.InvalidArgumentError, match="no_such"):
        shunt.run_ranks(lambda world: 0, 1, transport="no_such")


def test_a_fork_of_a_rank_is_no_rank():
    def rank(world):
        config = shunt.Config(max_tokens=1, num_experts=1, top_k=1, hidden=4)
        moe = shunt.AllToAll(world, config)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                moe.dispatch(np.zeros((1, 4), np.uint16), np.zeros((1, 1), np.int32))
            except shunt.InvalidStateError as error:
                status = 0 if "forked from it" in str(error) else 2
            finally:
                del moe
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        received = moe.dispatch(np.ones((1, 4), np.uint16), np.zeros((1, 1), np.int32))
        moe.combine(np.array(received.rows), np.ones((1, 1), np.float32))
        return received.valid

    assert shunt.run_ranks(rank, 2) == [False, False]
    # Also of one with a helper thread: the fork leaves it alone, and ends.
    with shunt.World.single() as world:
        assert shunt.run_ranks(lambda inner: inner.size, 2) == [2, 2]
        world.barrier()


@pytest.mark.parametrize("how", ["return", "exit", "raise"])
def test_a_fork_of_a_rank_that_leaves_the_function(how):
    """Reports are those of the ranks, whatever their children do; those end as other processes do."""

    def rank(world):
        child = os.fork()
        if child == 0:
            os.close(2)
            if how == "exit":
                sys.exit(3)
            if how == "raise":
                raise ValueError("of the child")
            return "of the child"
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == {"return": 0, "exit": 3, "raise": 1}[how]
        world.barrier()
        return world.rank

    assert shunt.run_ranks(rank, 2) == [0, 1]


def test_a_rank_that_ends_without_a_word_has_failed():
    def rank(world):
        if world.rank == 1:
            os._exit(0)

    with pytest.raises(shunt.RanksFailedError, match="rank 1 of 2: its process ended with status 0 before") as raised:
        shunt.run_ranks(rank, 2)
    assert [one.exit_status for one in raised.value.outcomes] == [0, 1]


def test_ranks_of_a_process_that_ignores_its_children():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert shunt.run_ranks(lambda world: world.rank, 2) == [0, 1]
        with pytest.raises(shunt.RanksFailedError, match="rank 0 of 2: killed by signal 9"):
            shunt.run_ranks(lambda world: world.rank == 0 and os.kill(os.getpid(), 9), 2)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_launch_starts_ranks_here():
    assert shunt.launch(lambda world: world.rank, ranks=3) == [0, 1, 2]


def test_the_end_leaves_nothing():
    """No message about leaks, no helper thread that keeps the interpreter."""
    text = """
import numpy as np, shunt
world = shunt.World.single()
config = shunt.Config(max_tokens=2, num_experts=2, top_k=1, hidden=8)
moe = shunt.AllToAll(world, config)
received = moe.dispatch(np.zeros((2, 8), np.uint16), np.zeros((2, 1), np.int32))
rows = received.rows
assert shunt.run_ranks(lambda world: world.rank, 2) == [0, 1]
print("done", flush=True)
"""
    watched = {**os.environ, "SHUNT_PYTHON_LEAKS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=100, check=False, env=watched
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_ranks_die_with_their_parent():
    """Forked ones; network_cases.py has the spawned ones."""
    network_cases.dies("fork")


def test_an_interrupt_ends_the_ranks():
    text = """
import os, shunt, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # Also where the tests were started with it ignored
signal.alarm(100)
def rank(world):
    os.write(1, f"{os.getpid()}\\n".encode())
    if world.rank == 0:
        world.barrier(1000)
    time.sleep(1000)
try:
    shunt.run_ranks(rank, 2)
except KeyboardInterrupt:
    os.write(1, b"interrupted\\n")
"""
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ranks = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert process.wait() == 0
    until = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in ranks):
        assert time.monotonic() < until, "a rank outlived the interrupt"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "case",
    ["spawn", "spawn_failure", "torchrun", "process_group", "agent", "mpirun", "join_late", "spawn_dies", "closed"],
)
def test_ranks_that_meet_by_network(case):
    """In a network namespace of its own; network_cases.py has the cases."""
    if case == "mpirun":
        mpi = {one.name: one for one in shunt.transports()}["mpi"]
        if not mpi.available or shutil.which("mpirun") is None:
            pytest.skip(f"no mpirun, or {mpi.reason}")
    if case in ("process_group", "agent"):
        torch = pytest.importorskip("torch")
        if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
            pytest.skip("this PyTorch has no process groups over gloo")
        if case == "agent" and torch.__version__.startswith("1.") and sys.version_info >= (3, 11):
            pytest.skip(f"the torchrun of PyTorch {torch.__version__} does not run under Python 3.11")
    inside = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("network namespaces need root, unshare and ip")
    script = os.path.join(os.path.dirname(__file__), "network_cases.py")
    ended = subprocess.run(
        [*inside, sys.executable, script, case], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_transports_have_reasons():
    found = {one.name: one for one in shunt.transports()}
    assert found["shm"].available
    assert all(one.available or one.reason for one in found.values())
