"""World: this process's part among the ranks."""

from __future__ import annotations

import atexit
import contextlib
import pickle
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from ._arrays import plain
from ._errors import InvalidStateError, failure_of

if TYPE_CHECKING:
    import torch

_open: weakref.WeakSet[World] = weakref.WeakSet()
_current: World | None = None


class World:
    """One rank among ``size`` ranks, each of which is a process.

    ``run_ranks`` and ``launch`` hand one to the function they call. A process that is already a rank makes its own:
    ``World.from_env()`` under torchrun, ``World.join(...)`` where the address is known, ``World.single()`` alone.

    A world is for one thread at a time: calls from two threads at once raise ``InvalidStateError``. Waits release the
    GIL. A fork of the process is not a rank: calls in it raise ``InvalidStateError``.
    """

    def __init__(self, core: _core.World) -> None:
        self._core = core
        _open.add(self)

    @classmethod
    def from_env(
        cls, *, transport: str = "auto", provider: str = "", pin: bool = False, start_deadline: float = 30.0
    ) -> World:
        """The rank that torchrun (or whoever sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) started.

        Collective. The ranks meet at SHUNT_PORT; without it at MASTER_PORT, or at the port after it where torchrun's
        own store listens there, so a process group of PyTorch can exist beside it.

        :param transport: "auto", or a name of ``transports()``.
        :param provider: of libfabric, such as "tcp;ofi_rxm"; empty: the best one here.
        :param pin: whether to pin the helper thread of the world to a CPU.
        :param start_deadline: seconds for all ranks to meet.
        :raises UnavailableError: where the process was not started so.
        """
        return cls(_core.from_environment(transport, provider, pin, start_deadline))

    @classmethod
    def join(
        cls,
        rank: int,
        size: int,
        address: str,
        port: int,
        *,
        transport: str = "auto",
        provider: str = "",
        start_deadline: float = 30.0,
    ) -> World:
        """Rank ``rank`` of ``size``, which meet at TCP ``address:port``, where rank 0 listens. Collective.

        :param start_deadline: seconds for all ranks to meet.
        :raises DeadlineError: where some do not come; the text names them.
        """
        return cls(_core.join(rank, size, address, port, transport, provider, False, start_deadline))

    @classmethod
    def single(cls) -> World:
        """A world of this process alone, for notebooks and tests."""
        return cls(_core.single())

    @property
    def rank(self) -> int:
        """This rank, 0 <= rank < size."""
        return self._core.rank

    @property
    def size(self) -> int:
        """Number of ranks, R."""
        return self._core.size

    @property
    def local_rank(self) -> int:
        """This rank among those of its node."""
        return self._core.local_rank

    @property
    def node(self) -> int:
        """Node of this rank; nodes are numbered from 0 in the order of their lowest ranks."""
        return self._core.node

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self._core.num_nodes

    @property
    def transport(self) -> str:
        """What carries bytes between the ranks, such as "shm"."""
        return self._core.transport

    @property
    def provider(self) -> str:
        """What carries bytes between nodes, as its library calls it; empty where nothing does."""
        return self._core.provider

    @property
    def device(self) -> int | None:
        """The GPU whose memory this world's is, as CUDA and PyTorch number them here; None for host memory."""
        return self._core.device

    @property
    def closed(self) -> bool:
        """Whether no more calls are possible."""
        return self._core.closed

    def barrier(self, timeout: float = 30.0) -> None:
        """Collective. Returns when every rank has called it, within ``timeout`` seconds."""
        self._core.barrier(timeout)

    def allgather(self, data: bytes, timeout: float = 30.0) -> list[bytes]:
        """Collective. The bytes of every rank, in rank order; lengths may differ."""
        return self._core.allgather(data, timeout)

    def allgather_object(self, value: Any, timeout: float = 30.0) -> list[Any]:
        """Collective. The pickled objects of every rank, in rank order."""
        return [pickle.loads(one) for one in self._core.allgather(pickle.dumps(value), timeout)]

    def alltoall(
        self,
        send: np.ndarray[Any, Any] | torch.Tensor,
        receive: np.ndarray[Any, Any] | torch.Tensor,
        timeout: float = 30.0,
    ) -> None:
        """Collective. Piece r of ``send`` goes to rank r, the piece from rank r to piece r of ``receive``.

        Both are contiguous, of the same number of bytes, which R divides.
        """
        self._core.alltoall(plain(send), plain(receive), timeout)

    def close(self) -> None:
        """Local. No more calls; waits for no peer. Memory lives on as long as arrays show it."""
        self._core.close()
        _open.discard(self)

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes; an exception is told to the peers, whose waits for this rank then end at once.

        They are told when the world's memory goes: no sooner than its AllToAlls and the arrays that show their memory.
        """
        failure = None if value is None else failure_of(value)
        if failure is None:
            self.close()
        else:
            self._core.fail(*failure)
            _open.discard(self)

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<shunt.World: rank {self.rank} of {self.size}, {self.transport}{state}>"


def current_world() -> World:
    """The world that ``run_ranks``, ``launch`` or ``set_current_world`` made the current one.

    :raises InvalidStateError: where there is none.
    """
    if _current is None or _current.closed:
        raise InvalidStateError(
            "this process has no current world; run inside shunt.run_ranks or shunt.launch, or call "
            "shunt.set_current_world"
        )
    return _current


def has_current_world() -> bool:
    """Whether ``current_world()`` would return one."""
    return _current is not None and not _current.closed


def set_current_world(world: World | None) -> None:
    """Makes ``world`` what ``current_world()`` returns in this process."""
    global _current
    _current = world


@contextlib.contextmanager
def as_current(world: World) -> Iterator[World]:
    """``world`` is the current one inside of the block."""
    before = _current
    set_current_world(world)
    try:
        yield world
    finally:
        set_current_world(before)


@atexit.register
def _close_all() -> None:
    """The helper threads of worlds end before the interpreter does."""
    set_current_world(None)
    for world in list(_open):
        world.close()
