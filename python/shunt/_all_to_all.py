"""AllToAll: tokens to their experts, weighted results back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal

from . import _core
from ._arrays import Array, ArrayKind, check_kind, dtype_name, named, plain, rows_in, zeros
from ._errors import InvalidArgumentError
from ._world import World

DispatchSent = _core.DispatchSent
CombineSent = _core.CombineSent

_SCALES = {"none": "", "float32": "float32", "ue8m0": "float8_e8m0fnu"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Fixed for the life of an ``AllToAll``. Ranks must pass equal values; the constructor compares them.

    Letters: R ranks, G = R / dp_size groups, E experts, L experts of one rank, K top-k, M most tokens, H hidden.
    Element types are names ("bfloat16"), NumPy, ml_dtypes or PyTorch dtypes.
    """

    max_tokens: int
    """M, most tokens that one group brings to a step."""
    num_experts: int
    """E, over all ranks; need not divide evenly."""
    top_k: int
    """K, experts of a token."""
    hidden: int
    """H, elements of a row."""
    token_dtype: Any = "bfloat16"
    """Of the tokens handed to dispatch: float32, float16, bfloat16, float8_e4m3fn, float8_e5m2."""
    payload: Any = None
    """Of the rows that arrive: ``token_dtype`` (the default), or an fp8 type for quantisation on the way."""
    scale: Literal["none", "float32", "ue8m0"] = "none"
    """Scales of the arriving fp8 rows."""
    scale_block: int = 128
    """Elements of a scale."""
    expert_dtype: Any = "bfloat16"
    """Of expert results: float32, float16 or bfloat16."""
    out_dtype: Any = "bfloat16"
    """Of combined tokens: float32, float16 or bfloat16."""
    dp_size: int = 1
    """Consecutive ranks that hold the same tokens; divides R."""
    layout: Literal["packed", "padded"] = "packed"
    """packed: experts follow each other, each from a multiple of ``alignment``; padded: each has room for the worst
    case, G * M rows rounded up to ``alignment``."""
    alignment: int = 1
    """Rows."""
    padding: Literal["untouched", "zero", "poison"] = "untouched"
    """What rows beyond an expert's count hold: whatever was there, zeros, or NaN."""
    delivery: Literal["rows", "view"] = "rows"
    """rows: copied to their place; view: read where they lie, in the memory of their source, with ``view_row``."""
    movement: Literal["automatic", "pull", "push", "push_streaming"] = "automatic"
    """Who copies a row; results do not depend on it. automatic: measured by the constructor."""
    push_from_bytes: int = -1
    """Bytes in flight from which rows are pushed; -1: measured."""
    stream_from_bytes: int = -1
    """Bytes in flight from which they are pushed past the caches; -1: measured."""
    max_recv_rows: int = -1
    """Most rows that may arrive at one rank in a step; -1: the worst case. A smaller bound needs less memory and lets
    dispatch_recv raise RowOverflowError."""
    path: Literal["automatic", "flat", "hierarchical"] = "automatic"
    """How rows cross between nodes."""
    presum: bool = False
    """Sum results where they are before they cross; needs the weights in dispatch_send."""
    on_peer_loss: Literal["fail", "mask"] = "fail"
    """mask: survivors go on; PeerMaskedError voids the step, which the caller repeats."""
    check_messages: bool = False
    """Checksums on what crosses by network."""
    counts_by_group: bool = False
    """Fill ``Received.counts_by_group``."""
    record_waits: bool = False
    """Fill ``AllToAll.wait_ns`` and ``step_times``."""
    check_replicas: bool = False
    """Compare the tokens of the ranks of a group."""
    deadline: float = 30.0
    """Seconds: the longest wait for a peer inside one half."""

    def __post_init__(self) -> None:
        for field in ("token_dtype", "expert_dtype", "out_dtype"):
            object.__setattr__(self, field, dtype_name(getattr(self, field)))
        object.__setattr__(self, "payload", dtype_name(self.payload or self.token_dtype))


class Received:
    """Rows of one rank after dispatch.

    Its arrays are views of the AllToAll's memory, valid until this rank's ``combine_send``. Afterwards its properties
    raise ``InvalidStateError``; arrays taken from them before stay readable, but their content changes with the next
    step. Letters as in ``Config``; W is the number of rows, padding included.
    """

    def __init__(self, core: _core.Received, owner: AllToAll, rows: Any = None, scales: Any = None) -> None:
        self._core = core
        self._owner = owner
        self._rows = rows
        self._scales = scales

    @property
    def rows(self) -> Any:
        """[W, H] of the payload dtype, expert by expert (read-only in NumPy); with delivery "view" [0, H].

        Where dispatch_recv was given an array to copy to, that array: it outlives combine_send.
        """
        if self._rows is not None:
            return self._rows
        return named(self._core.rows(self._owner._torch), self._owner.config.payload, self._owner.arrays)

    @property
    def scales(self) -> Any:
        """[W, ceil(H / scale_block)] of float32 or, for ue8m0, uint8; None without scales."""
        if self._scales is not None:
            return self._scales
        return self._core.scales(self._owner._torch)

    @property
    def starts(self) -> Any:
        """[L + 1] int64: the first row of each local expert; starts[L] = W."""
        return self._core.starts(self._owner._torch)

    @property
    def counts(self) -> Any:
        """[L] int64: rows of each local expert that carry tokens."""
        return self._core.counts(self._owner._torch)

    @property
    def counts_by_group(self) -> Any:
        """[L, G] int32: of them from each source group; None unless the config asks for it."""
        return self._core.counts_by_group(self._owner._torch)

    @property
    def num_rows(self) -> int:
        """Sum of counts."""
        return self._core.num_rows

    @property
    def valid(self) -> bool:
        """Whether the views still show this step."""
        return self._core.valid

    def __len__(self) -> int:
        """W."""
        return len(self._core)

    def view_row(self, index: int) -> Any:
        """[H] row ``index`` where it lies in its source's memory; None for padding. Delivery "view" only."""
        return named(self._core.view_row(index, self._owner._torch), self._owner.config.payload, self._owner.arrays)

    def view_scales(self, index: int) -> Any:
        """[ceil(H / scale_block)] scales of row ``index``; None for padding. Delivery "view" only."""
        return self._core.view_scales(index, self._owner._torch)


class AllToAll:
    """Moves tokens to their experts and returns the weighted results.

    One step, in this order on every rank: ``dispatch``, the caller's experts, ``combine``; or in halves,
    ``dispatch_send``, ``dispatch_recv``, the experts, ``combine_send``, ``combine_recv``. Work placed between a send
    and its recv overlaps with the peers.

    The sum is out[t] = sum over k of weights[t, k] * row(t, k), in k order, fp32 fma, rounded once: the same bits on
    every transport. Inputs are NumPy arrays, PyTorch tensors in host memory, or anything else that speaks DLPack;
    they are read where they lie (rows may be apart) and may be reused when a call returns. The only copies are those
    that ``byte_counters`` counts. NumPy has no bfloat16 and no fp8: give their bits as uint16 and uint8, or arrays of
    ml_dtypes.

    On a world whose memory lies on GPUs (``world.device``) the same calls take CUDA tensors: ``AllToAll(...)`` makes a
    ``shunt.CudaAllToAll``, which says what differs.

    Errors leave what docs/errors.md says. Every wait has ``config.deadline`` and releases the GIL.
    """

    _combining: CombineSent | None = None
    """The receipt of a ``combine`` that has sent and did not come to its end."""

    def __new__(cls, world: World, config: Config, **options: Any) -> AllToAll:
        """On a world whose memory lies on GPUs a ``CudaAllToAll``."""
        if cls is AllToAll and world.device is not None:
            from ._cuda import CudaAllToAll

            return object.__new__(CudaAllToAll)
        return object.__new__(cls)

    def __init__(self, world: World, config: Config, *, arrays: ArrayKind | None = None) -> None:
        """Collective. Checks and compares the config on all ranks and allocates everything.

        :param arrays: what results and views are: "numpy" (bfloat16 as uint16, fp8 as uint8), "ml_dtypes" (NumPy
            arrays with those element types) or "torch" (fp8 as uint8 where PyTorch has none). None: "numpy".
        """
        self.arrays: ArrayKind = arrays or "numpy"
        check_kind(self.arrays)
        self.world = world
        self.config = config
        self._torch = self.arrays == "torch"
        self._core = _core.AllToAll(world._core, asdict(config))
        self._tokens = 0

    def dispatch_send(
        self,
        tokens: Array,
        expert_ids: Array,
        *,
        scales: Array | None = None,
        weights: Array | None = None,
        live_tokens: int | None = None,
    ) -> DispatchSent:
        """Starts moving ``tokens`` [T, H] to ``expert_ids`` [T, K] (int32, int64, uint32 or uint64; -1 skips that k).

        T may differ between groups and be 0. Tokens in ``token_buffer`` (from row 0 on) are read in place and must
        stay until this rank's combine_recv.

        :param scales: [T, ceil(H / scale_block)], dense, for tokens that are already fp8 with scales.
        :param weights: [T, K] float32, dense, those of combine_recv; with config.presum only.
        :param live_tokens: only the first so many rows count.
        :returns: the receipt for ``dispatch_recv``.
        """
        count = rows_in(tokens, expert_ids) if live_tokens is None else live_tokens
        sent = self._core.dispatch_send(
            plain(tokens, self.config.token_dtype, "tokens"),
            plain(expert_ids),
            None if scales is None else plain(scales, _SCALES[self.config.scale], "scales"),
            None if weights is None else plain(weights),
            live_tokens,
        )
        self._tokens = count
        self._combining = None
        return sent

    def dispatch_recv(self, sent: DispatchSent, *, rows: Array | None = None, scales: Array | None = None) -> Received:
        """Waits for every source and returns this rank's rows.

        :param rows: [>= max_rows, H] of the payload dtype, written: the rows are also copied there, to the first W, and
            outlive combine_send.
        :param scales: the same for scales, [>= max_rows, ceil(H / scale_block)], dense.
        :raises RowOverflowError: on every rank, where one would receive more than config.max_recv_rows.
        """
        if rows is None:
            core = self._core.dispatch_recv(sent, None, None if scales is None else plain(scales))
            return Received(core, self, rows, scales)
        # Before the wait: how many rows come is known when they are here, and then the step has gone on.
        shape = getattr(rows, "shape", None)
        if shape is not None and len(shape) == 2 and (shape[0] < self.max_rows or shape[1] != self.config.hidden):
            raise InvalidArgumentError(
                f"dispatch_recv: rows is {list(shape)}; at least [{self.max_rows}, {self.config.hidden}] is needed"
            )
        if scales is None and self.config.scale != "none":
            raise InvalidArgumentError("dispatch_recv: rows have scales; scales to copy them to are needed too")
        core = self._core.dispatch_recv(
            sent,
            plain(rows, self.config.payload, "rows"),
            None if scales is None else plain(scales, _SCALES[self.config.scale], "scales"),
        )
        return Received(core, self, rows, scales)

    def dispatch(
        self,
        tokens: Array,
        expert_ids: Array,
        *,
        scales: Array | None = None,
        weights: Array | None = None,
        live_tokens: int | None = None,
    ) -> Received:
        """``dispatch_send``, then ``dispatch_recv``."""
        return self.dispatch_recv(
            self.dispatch_send(tokens, expert_ids, scales=scales, weights=weights, live_tokens=live_tokens)
        )

    def combine_send(self, results: Array | None = None) -> CombineSent:
        """Announces the expert results [W, H] of expert_dtype, row i for row i of ``Received``.

        Padding rows are not read. Without ``results`` they lie in ``expert_output``, where they are read in place;
        others are copied there first.

        :returns: the receipt for ``combine_recv``.
        """
        return self._core.combine_send(None if results is None else plain(results, self.config.expert_dtype, "results"))

    def combine_recv(
        self, sent: CombineSent, weights: Array, out: Array | None = None, *, accumulate: bool = False
    ) -> Any:
        """Writes ``out`` [T, H] of out_dtype, T as in this step's dispatch_send, from ``weights`` [T, K] float32.

        :param out: written, rows from T on untouched; None: a new array.
        :param accumulate: start the sum at the old values of ``out``.
        :returns: ``out``.
        """
        if out is None:
            out = zeros((self._tokens, self.config.hidden), self.config.out_dtype, self.arrays)
        self._core.combine_recv(sent, plain(weights), plain(out, self.config.out_dtype, "out"), accumulate)
        return out

    def combine(
        self, results: Array | None, weights: Array, out: Array | None = None, *, accumulate: bool = False
    ) -> Any:
        """``combine_send``, then ``combine_recv``.

        Where ``weights`` or ``out`` are refused, or an interrupt comes between the halves, the results have been sent:
        the next call goes on from there and does not read ``results`` again.
        """
        sent = self._combining
        if sent is None:
            sent = self._combining = self.combine_send(results)
        combined = self.combine_recv(sent, weights, out, accumulate=accumulate)
        self._combining = None
        return combined

    @property
    def token_buffer(self) -> Any:
        """[M, H] of token_dtype: tokens written here are read in place. [0, H] with quantisation."""
        return named(self._core.token_buffer(self._torch), self.config.token_dtype, self.arrays)

    @property
    def token_scales(self) -> Any:
        """[M, ceil(H / scale_block)], those of ``token_buffer``; None without scales."""
        return self._core.token_scales(self._torch)

    @property
    def expert_output(self) -> Any:
        """[max_rows, H] of expert_dtype: results written here after dispatch_recv are not copied."""
        return named(self._core.expert_output(self._torch), self.config.expert_dtype, self.arrays)

    @property
    def max_rows(self) -> int:
        """Upper bound of W on this rank."""
        return self._core.max_rows()

    @property
    def workspace_bytes(self) -> int:
        """Symmetric memory held by this rank."""
        return self._core.workspace_bytes()

    @property
    def alive(self) -> list[bool]:
        """[R] whether each rank takes part; False for those masked."""
        return self._core.alive()

    @property
    def step_times(self) -> dict[str, int]:
        """Nanoseconds of the last step's parts on this rank, with config.record_waits, else zeros."""
        return self._core.step_times()

    @property
    def byte_counters(self) -> dict[str, int]:
        """Bytes since construction: staged (copied because they lay elsewhere), moved, crossed to other nodes."""
        return self._core.byte_counters()

    def wait_ns(self, half: Literal["dispatch", "combine"]) -> list[int]:
        """[R] nanoseconds this rank waited for each peer since construction, with config.record_waits."""
        return self._core.wait_ns(half)

    def close(self) -> None:
        """Local: waits for no peer. The memory goes when no array shows it any more."""
        self._core.close()

    @property
    def closed(self) -> bool:
        """Whether no more calls are possible."""
        return self._core.closed

    def __enter__(self) -> AllToAll:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
