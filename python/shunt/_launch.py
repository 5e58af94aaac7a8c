"""Starting ranks: on this machine, or as the launcher of a job says."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from . import _core
from ._errors import Error, InternalError, InvalidArgumentError, RankOutcome, failure_of, make_error, ranks_failed
from ._world import World, as_current


class _Report(NamedTuple):
    """What a rank leaves in its file of results."""

    value: Any
    failure: tuple[str, str] | None
    trace: str


class _Files:
    """A file in memory for each rank, written by its process and read when it has ended."""

    def __init__(self, ranks: int) -> None:
        self.ids = [os.memfd_create(f"shunt-result-{rank}") for rank in range(ranks)]

    def write(self, index: int, content: Any) -> None:
        data = memoryview(pickle.dumps(content))
        while data:
            data = data[os.write(self.ids[index], data) :]

    def read(self, index: int) -> Any:
        size = os.fstat(self.ids[index]).st_size
        if size == 0:
            return None
        parts = []
        at = 0
        while at < size:
            part = os.pread(self.ids[index], min(size - at, 1 << 30), at)
            parts.append(part)
            at += len(part)
        try:
            return pickle.loads(b"".join(parts))
        except (pickle.UnpicklingError, EOFError):
            return None  # The rank was killed while it wrote.

    def close(self) -> None:
        for one in self.ids:
            os.close(one)
        self.ids = []


def _call(function: Callable[..., Any], core: _core.World, args: Any, kwargs: Any) -> _Report:
    """The function as one rank, with everything it raises. Returns in the process of the rank only."""
    world = World(core)
    rank = os.getpid()
    try:
        with as_current(world):
            report = _Report(function(world, *args, **kwargs), None, "")
    except BaseException as error:
        _end_fork(rank, error)
        failure = failure_of(error)
        return _Report(None, failure, traceback.format_exc() if failure else "")
    _end_fork(rank, None)
    return report


def _end_fork(rank: int, error: BaseException | None) -> None:
    """Ends a process that the rank's function has forked and that left the function too: reports are the rank's."""
    if os.getpid() == rank:
        return
    status = 0 if error is None else 1
    try:
        if isinstance(error, SystemExit):
            if error.code is None or isinstance(error.code, int):
                status = error.code or 0
            else:
                print(error.code, file=sys.stderr)
        elif error is not None:
            traceback.print_exception(type(error), error, error.__traceback__)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)


def _store(files: _Files, index: int, report: _Report) -> _Report:
    try:
        files.write(index, report)
    except Exception as error:
        report = _Report(None, ("invalid_argument", f"the rank's result cannot be pickled: {error}"), "")
        os.ftruncate(files.ids[index], 0)
        os.lseek(files.ids[index], 0, os.SEEK_SET)
        files.write(index, report)
    return report


_SILENT = (1, "internal", "its process ended with status 0 before its function returned")


def _outcomes_and_values(raw: list[tuple[int, int, int, str, str]], files: _Files, first: int) -> list[Any]:
    outcomes = []
    values = []
    for rank, status, killed, code, message in raw:
        report = files.read(rank - first)
        if report is None and status == 0:
            status, code, message = _SILENT
        outcomes.append(RankOutcome(rank, status, killed, code, message, report.trace if report else ""))
        values.append(report.value if report else None)
    if any(one.exit_status for one in outcomes):
        raise ranks_failed(outcomes)
    return values


def _wait_for(child: int) -> int:
    """The wait status of a child that ends; 0 where this process ignores SIGCHLD, as then there is none."""
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:
        return 0


def _in_nursery(
    ranks: int, first: int, function: Callable[..., Any], args: Any, kwargs: Any, run: Callable[[Any], Any]
) -> list[Any]:
    """Runs ``run(body)`` in a process of its own that forks the ranks.

    It waits for them holding its GIL, which hurts nobody there; here the wait is one of Python's own, so signals and
    other threads go on. It dies with this process, and the ranks die with it.
    """
    files = _Files(ranks)
    ended = _Files(1)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = 0
    try:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _core.die_with_parent(parent)
                # Where it is ignored, nobody learns how children end.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)

                def body(core: _core.World) -> tuple[str, str] | None:
                    report = _store(files, core.rank - first, _call(function, core, args, kwargs))
                    sys.stdout.flush()
                    sys.stderr.flush()
                    return report.failure

                ended.write(0, run(body))
                status = 0
            except BaseException as error:
                ended.write(0, failure_of(error))
            finally:
                os._exit(status)
        wait_status = _wait_for(child)
        child = 0
        raw = ended.read(0)
        if isinstance(raw, tuple):
            raise make_error(*raw)
        if raw is None:
            raise InternalError(f"the process that started the ranks ended with wait status {wait_status}")
        return _outcomes_and_values(raw, files, first)
    finally:
        if child > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            _wait_for(child)
        files.close()
        ended.close()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _spawned(
    parent: int,
    connection: multiprocessing.connection.Connection,
    function: Callable[..., Any],
    rank: int,
    options: dict[str, Any],
    args: Any,
    kwargs: Any,
) -> None:
    """A spawned rank: from the world's start to its report."""
    _core.die_with_parent(parent)
    try:
        core = _core.join(rank=rank, **options)
    except Error as error:
        report = _Report(None, failure_of(error), traceback.format_exc())
    else:
        report = _call(function, core, args, kwargs)
        if report.failure is not None:
            core.fail(*report.failure)
        else:
            core.close()
    try:
        connection.send(report)
    except Exception as error:
        connection.send(_Report(None, ("invalid_argument", f"the rank's result cannot be pickled: {error}"), ""))
    sys.exit(1 if report.failure else 0)


def _spawn(ranks: int, function: Callable[..., Any], args: Any, kwargs: Any, options: dict[str, Any]) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    options = dict(options, size=ranks, address="127.0.0.1", port=_free_port())
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    parent = os.getpid()
    processes = [
        context.Process(
            target=_spawned, args=(parent, pipes[rank][1], function, rank, options, args, kwargs), daemon=True
        )
        for rank in range(ranks)
    ]
    reports: list[_Report | None] = [None] * ranks
    try:
        for rank, process in enumerate(processes):
            process.start()
            pipes[rank][1].close()
        waiting = list(range(ranks))
        while waiting:
            ready = multiprocessing.connection.wait([pipes[rank][0] for rank in waiting])
            for rank in [rank for rank in waiting if pipes[rank][0] in ready]:
                with contextlib.suppress(EOFError, OSError):
                    reports[rank] = pipes[rank][0].recv()
                waiting.remove(rank)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
        for reader, _ in pipes:
            reader.close()
    outcomes = []
    for rank, (process, report) in enumerate(zip(processes, reports, strict=True)):
        status = process.exitcode or 0
        killed = -status if status < 0 else 0
        code, message = report.failure if report is not None and report.failure else ("internal", "")
        if report is None and status == 0:
            status, code, message = _SILENT
        if killed:
            message = f"killed by signal {killed} ({signal.strsignal(killed)})"
        outcomes.append(
            RankOutcome(rank, 128 + killed if killed else status, killed, code, message, report.trace if report else "")
        )
    if any(one.exit_status for one in outcomes):
        raise ranks_failed(outcomes)
    return [report.value if report else None for report in reports]


def run_ranks(
    function: Callable[..., Any],
    ranks: int,
    *args: Any,
    start: Literal["fork", "spawn"] = "fork",
    transport: str = "auto",
    provider: str = "",
    nodes: int = 1,
    pin: bool = False,
    start_deadline: float = 30.0,
    **kwargs: Any,
) -> list[Any]:
    """Calls ``function(world, *args, **kwargs)`` in ``ranks`` new processes of this machine, as the ranks of a world.

    The world's memory is anonymous and goes with its last process; ranks die with this process.

    :param start: "fork": the ranks begin as copies of this process, so ``function`` may be a local one, and meet in
        its memory without a socket. "spawn": fresh interpreters, for processes that must not be forked (threads that
        hold locks, a used GPU); ``function`` and its arguments are pickled, and the ranks meet at a free port of
        127.0.0.1.
    :param transport: "auto" (shared memory), or a name of ``transports()``.
    :param provider: of libfabric; empty: the best one here.
    :param nodes: nodes that the machine pretends to be (fork only); divides ``ranks``.
    :param pin: pin rank r to CPU r mod cores (fork only).
    :param start_deadline: seconds for all ranks to meet.
    :returns: the values that the ranks returned (pickled on their way), in rank order.
    :raises RanksFailedError: where a rank raised, exited with a status or was killed: ``outcomes`` says how each ended.
    """
    if start == "fork":

        def run(body: Any) -> Any:
            return _core.run_local(body, ranks, nodes, transport, provider, pin, start_deadline)

        return _in_nursery(ranks, 0, function, args, kwargs, run)
    if start != "spawn":
        raise InvalidArgumentError(f'run_ranks: start is "{start}"; allowed are fork, spawn')
    if nodes != 1 or pin:
        raise InvalidArgumentError("run_ranks: nodes and pin need start fork")
    if not 1 <= ranks <= 1024:
        raise InvalidArgumentError(f"run_ranks: {ranks} ranks; 1 to 1024 are allowed on one machine")
    options = {"transport": transport, "provider": provider, "pin": False, "start_deadline": start_deadline}
    return _spawn(ranks, function, args, kwargs, options)


def launch(
    function: Callable[..., Any],
    *args: Any,
    ranks: int = 2,
    transport: str = "auto",
    provider: str = "",
    pin: bool = False,
    start_deadline: float = 30.0,
    **kwargs: Any,
) -> list[Any]:
    """Calls ``function(world, *args, **kwargs)`` as every rank that this process is or starts.

    The environment says which (docs/architecture.md, "Ranks"): one rank under torchrun, mpirun and srun; the ranks of
    its node where MASTER_ADDR, MASTER_PORT, WORLD_SIZE, WORLD_LOCAL_SIZE and NODE_RANK are set; else ``ranks`` ranks
    on this machine, as ``run_ranks``. So one script runs on a laptop and on a cluster.

    Under an MPI launcher the world ends with the call: copy what outlives it out of the world's arrays.

    :returns: the values of the ranks that this process is or starts, in rank order.
    :raises RanksFailedError: as ``run_ranks``; where this process is the rank, its own exception passes through.
    """
    way = _core.launch_way()
    if way == "local":
        return run_ranks(
            function,
            ranks,
            *args,
            transport=transport,
            provider=provider,
            pin=pin,
            start_deadline=start_deadline,
            **kwargs,
        )
    if way == "rank":
        with World(_core.from_environment(transport, provider, pin, start_deadline)) as world, as_current(world):
            return [function(world, *args, **kwargs)]
    if way == "node":
        share = int(os.environ["WORLD_LOCAL_SIZE"])
        first = int(os.environ["NODE_RANK"]) * share

        def run(body: Any) -> Any:
            return _core.run_job(body, transport, provider, pin, start_deadline)

        return _in_nursery(share, first, function, args, kwargs, run)
    values: list[Any] = []
    raised: list[BaseException] = []

    def here(core: _core.World) -> tuple[str, str] | None:
        world = World(core)
        rank = os.getpid()
        try:
            with as_current(world):
                values.append(function(world, *args, **kwargs))
        except BaseException as error:
            _end_fork(rank, error)
            raised.append(error)
            return failure_of(error) or ("internal", "left its function by exit(0)")
        _end_fork(rank, None)
        return None

    outcome = _core.run_job(here, transport, provider, pin, start_deadline)[0]
    if raised:
        raise raised[0]
    if outcome[1] != 0:
        raise make_error(outcome[3], outcome[4])
    return values


class TransportInfo(NamedTuple):
    """One way to carry bytes between ranks."""

    name: str
    available: bool
    reason: str
    """Why not, or what it is."""


def transports() -> list[TransportInfo]:
    """The transports of this build, with the reason where one cannot run here."""
    return [TransportInfo(*one) for one in _core.transports()]
