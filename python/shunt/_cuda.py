"""AllToAll on GPUs: the calls of ``shunt.AllToAll`` on CUDA tensors, on PyTorch's current stream."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from . import _core
from ._all_to_all import AllToAll, Config, Received
from ._arrays import Array, ArrayKind, check_kind, named, plain
from ._errors import InvalidArgumentError, InvalidStateError
from ._world import World


def _stream(device: int) -> int:
    """The number of PyTorch's current stream of that GPU."""
    import torch

    return int(torch.cuda.current_stream(device).cuda_stream)


class CudaReceived(Received):
    """Rows of one rank after dispatch, on its GPU: what they hold is there once the stream has passed dispatch_recv.

    The host knows bounds only, so ``rows`` has ``max_rows`` rows, of which the first ``starts[L]`` carry something.
    Addresses are the same in every step. ``num_rows`` and ``len()`` wait for the stream; everything else does not.
    """

    _core: Any

    def __init__(self, core: _core.CudaReceived, owner: CudaAllToAll) -> None:
        super().__init__(core, owner)

    @property
    def rows(self) -> Any:
        """[max_rows, H] of the payload dtype, expert by expert; with delivery "view" [0, H]."""
        return named(self._core.rows(), self._owner.config.payload, "torch")

    @property
    def scales(self) -> Any:
        """[max_rows, ceil(H / scale_block)] of float32 or, for ue8m0, uint8; None without scales."""
        return self._core.scales()

    @property
    def starts(self) -> Any:
        """[L + 1] int32: the first row of each local expert; starts[L] = W."""
        return self._core.starts()

    @property
    def counts(self) -> Any:
        """[L] int32: rows of each local expert that carry tokens."""
        return self._core.counts()

    @property
    def counts_by_group(self) -> Any:
        """[L, G] int32: of them from each source group; None unless the config asks for it."""
        return self._core.counts_by_group()

    @property
    def num_rows(self) -> int:
        """Sum of counts. Waits for the current stream."""
        return int(self._core.num_rows().item())

    def __len__(self) -> int:
        """W. Waits for the current stream."""
        return int(self.starts[-1].item())

    @property
    def row_pointers(self) -> Any:
        """[max_rows] int64 addresses of the rows, 0 for padding; None with delivery "rows"."""
        return self._core.row_pointers()

    @property
    def scale_pointers(self) -> Any:
        """The same of their scales."""
        return self._core.scale_pointers()

    def view_row(self, index: int) -> Any:
        """Not on GPUs: kernels take ``row_pointers``."""
        raise InvalidArgumentError(f"view_row({index}): on GPUs the host does not know rows; use row_pointers")

    view_scales = view_row


class CudaAllToAll(AllToAll):
    """What ``shunt.AllToAll`` makes on a world whose memory lies on GPUs.

    Tensors lie on ``cuda:<world.device>``. Every call puts kernels on PyTorch's current stream of that GPU and returns,
    so a step can be captured in a CUDA graph; what the kernels find (a lost peer, an id out of range, overflow) is
    raised by the next call or by ``check()``. Inputs must not change until the stream has passed the call.
    """

    _core: Any

    def __init__(self, world: World, config: Config, *, arrays: ArrayKind | None = None, max_blocks: int = 0) -> None:
        """Collective. As ``AllToAll``; presum, check_messages, check_replicas, record_waits and movement are refused.

        :param max_blocks: of a kernel, to leave multiprocessors to others; 0: as many as fill the GPU.
        """
        if arrays not in (None, "torch"):
            raise InvalidArgumentError(f'arrays is "{arrays}"; the memory of this world lies on GPUs, so "torch" is it')
        check_kind("torch")
        self.world = world
        self.config = config
        self.arrays = "torch"
        self._torch = True
        self._core = _core.CudaAllToAll(world._core, asdict(config), max_blocks)
        self._device = -1 if world.device is None else world.device
        self._tokens = 0

    def dispatch_send(
        self,
        tokens: Array,
        expert_ids: Array,
        *,
        scales: Array | None = None,
        weights: Array | None = None,
        live_tokens: Any = None,
    ) -> _core.CudaDispatchSent:
        """As ``AllToAll.dispatch_send``.

        :param live_tokens: a number, or a tensor of one int32 on the GPU, read by the kernels: then one captured graph
            serves any number of tokens up to T.
        """
        if weights is not None:
            raise InvalidArgumentError("dispatch_send: weights are for config.presum, which GPUs do not have")
        if isinstance(live_tokens, int):
            if not 0 <= live_tokens <= tokens.shape[0]:
                raise InvalidArgumentError(
                    f"dispatch_send: live_tokens is {live_tokens}; 0 to {tokens.shape[0]} are allowed"
                )
            tokens, expert_ids = tokens[:live_tokens], expert_ids[:live_tokens]
            live_tokens = None
        sent: _core.CudaDispatchSent = self._core.dispatch_send(
            plain(tokens),
            plain(expert_ids),
            None if scales is None else plain(scales),
            live_tokens,
            _stream(self._device),
        )
        self._tokens = tokens.shape[0]
        self._combining = None
        return sent

    def dispatch_recv(
        self, sent: _core.CudaDispatchSent, *, rows: Array | None = None, scales: Array | None = None
    ) -> CudaReceived:
        """As ``AllToAll.dispatch_recv``; returns at once, the stream waits.

        :param rows: [>= max_rows, H], copied to on the stream. :param scales: the same for scales.
        """
        received = CudaReceived(self._core.dispatch_recv(sent, _stream(self._device)), self)
        if rows is None and scales is not None:
            raise InvalidArgumentError("scales to copy to were given without rows to copy to")
        for what, to, given in (("rows", rows, received.rows), ("scales", scales, received.scales)):
            if to is None:
                continue
            if given is None or to.shape[0] < given.shape[0] or tuple(to.shape[1:]) != tuple(given.shape[1:]):
                needed = "no scales here" if given is None else f"{list(given.shape)} is needed"
                raise InvalidArgumentError(f"dispatch_recv: {what} is {list(to.shape)}; {needed}")
            to[: given.shape[0]].copy_(given)  # type: ignore[union-attr]
        received._rows, received._scales = rows, scales
        return received

    def combine_send(self, results: Array | None = None) -> _core.CudaCombineSent:
        """As ``AllToAll.combine_send``, for results [>= max_rows, H]: the host does not know how many are needed."""
        sent: _core.CudaCombineSent = self._core.combine_send(
            None if results is None else plain(results), _stream(self._device)
        )
        return sent

    def combine_recv(
        self, sent: _core.CudaCombineSent, weights: Array, out: Array | None = None, *, accumulate: bool = False
    ) -> Any:
        """As ``AllToAll.combine_recv``: ``out`` is there once the stream has passed the call."""
        if out is None:
            import torch

            out = torch.zeros(
                (self._tokens, self.config.hidden),
                dtype=getattr(torch, self.config.out_dtype),
                device=f"cuda:{self._device}",
            )
        self._core.combine_recv(sent, plain(weights), plain(out), accumulate, self._tokens, _stream(self._device))
        return out

    def check(self) -> None:
        """Raises what the kernels have found so far. To be sure about a step, synchronise its stream first."""
        self._core.check()

    @property
    def token_buffer(self) -> Any:
        """[M, H] of token_dtype where tokens are sent from there without a copy; None where they are from anywhere."""
        buffer = self._core.token_buffer()
        return None if buffer is None else named(buffer, self.config.token_dtype, "torch")

    @property
    def token_scales(self) -> Any:
        """None: scales are read where they lie."""
        return None

    @property
    def expert_output(self) -> Any:
        """[max_rows, H] of expert_dtype: results written here are sent from where they lie."""
        return self._core.expert_output()

    @property
    def steps_completed(self) -> int:
        """Steps that are complete on every rank, as known after ``check()``; with on_peer_loss "mask" only."""
        return int(self._core.steps_completed())

    @property
    def step_times(self) -> dict[str, int]:
        raise InvalidStateError("step_times: on GPUs time the stream, by events")

    @property
    def byte_counters(self) -> dict[str, int]:
        raise InvalidStateError("byte_counters: GPUs do not count bytes")

    def wait_ns(self, half: str) -> list[int]:
        """Not on GPUs."""
        raise InvalidStateError(f'wait_ns("{half}"): on GPUs time the stream, by events')
