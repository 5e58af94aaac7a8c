"""Dispatch and combine as operators of PyTorch: gradients, and shapes that tracers know before anything runs.

The operators ``torch.ops.shunt.dispatch``, ``combine`` and their backward ones have fake (Meta) kernels: their shapes
follow from the config alone, so ``torch.compile(fullgraph=True)`` and export trace through them without a world's step.
The backward of dispatch is a combine, that of combine a dispatch: one step of the same ``AllToAll``.

Letters as in ``shunt.Config``; N is ``Exchange.max_rows``.
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from typing import Any, NamedTuple

import torch

from ._all_to_all import AllToAll, Config
from ._errors import InvalidArgumentError, InvalidStateError
from ._world import World

_FLOATS = ("float32", "float16", "bfloat16")

_exchanges: weakref.WeakValueDictionary[int, Exchange] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Arrived(NamedTuple):
    """Rows of one rank after dispatch."""

    rows: torch.Tensor
    """[N, H] expert by expert; zeros where no token is."""
    starts: torch.Tensor
    """[L + 1] int64: the first row of each local expert; starts[L] is the number of rows, padding included."""
    counts: torch.Tensor
    """[L] int64: rows of each local expert that carry tokens."""


class Exchange:
    """Dispatch and combine with gradients to tokens, expert results and weights.

    One object carries one step at a time, forward or backward; layers that follow each other may share it. All ranks
    call forward and backward in the same order.

    With ``dp_size`` above 1 the ranks of a group bring the same tokens, ids and weights, and the same gradients of what
    they got; each gets all gradients of what it brought, as if it were the only one.
    """

    def __init__(self, world: World, config: Config) -> None:
        """Collective. The config must say delivery "rows" and no quantisation; its three element types may differ.

        Padding rows are zeros, whatever ``config.padding`` says. A second, small AllToAll carries the weights that
        the gradients need, and where the types differ a third the gradients, which have those of what they belong to.

        :raises InvalidArgumentError: where the config says otherwise; nothing is allocated.
        """
        if config.payload != config.token_dtype or config.scale != "none" or config.token_dtype not in _FLOATS:
            raise InvalidArgumentError(
                f"Exchange: token_dtype is {config.token_dtype}, payload {config.payload}, scale {config.scale}; "
                f"gradients travel the same way back, so rows are tokens of {', '.join(_FLOATS)} without scales"
            )
        if config.delivery != "rows" or config.presum or config.on_peer_loss != "fail":
            raise InvalidArgumentError(
                f'Exchange: delivery is "{config.delivery}", presum {config.presum}, on_peer_loss '
                f'"{config.on_peer_loss}"; "rows", False and "fail" are allowed'
            )
        self.config = dataclasses.replace(config, padding="zero")
        self._main = AllToAll(world, self.config, arrays="torch")
        # The way of gradients: those of the output to the experts, those of rows back to the tokens.
        back = dataclasses.replace(
            self.config,
            token_dtype=config.out_dtype,
            payload=config.out_dtype,
            expert_dtype=config.token_dtype,
            out_dtype=config.token_dtype,
        )
        same = config.token_dtype == config.expert_dtype == config.out_dtype
        self._back = self._main if same else AllToAll(world, back, arrays="torch")
        beside = dataclasses.replace(
            self.config,
            hidden=2 * config.top_k,
            token_dtype="float32",
            payload="float32",
            expert_dtype="float32",
            out_dtype="float32",
        )
        self._beside = AllToAll(world, beside, arrays="torch")
        share, extra = divmod(config.num_experts, world.size)
        self._first_expert = world.rank * share + min(world.rank, extra)
        self.num_local_experts = share + (world.rank < extra)
        self.max_rows = self._main.max_rows
        self._device = torch.device("cpu" if world.device is None else f"cuda:{world.device}")
        self._arrived = 0
        self._rows: torch.Tensor | None = None
        """What dispatch has returned, until combine."""
        self._open: torch.Tensor | None = None
        """The expert ids of a backward step that has been dispatched and not yet combined."""
        self.number = next(_numbers)
        """What the operators call this object."""
        _exchanges[self.number] = self

    def dispatch(self, tokens: torch.Tensor, expert_ids: torch.Tensor) -> Arrived:
        """Collective. Brings ``tokens`` [T, H] to ``expert_ids`` [T, K] (int32 or int64; -1 skips that k).

        Under autocast ``tokens`` are cast to the config's type, as results and weights in combine.
        """
        tokens = _under_autocast(tokens, self.config.token_dtype)
        expert_ids = _as_tensor(expert_ids)
        arrived = Arrived(*torch.ops.shunt.dispatch(tokens, expert_ids, self.number))
        self._rows = arrived.rows
        return arrived

    def combine(self, results: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Collective. [T, H]: the sum over k of ``weights`` [T, K] times the results [N, H] of each token.

        The backward of dispatch follows that of combine on every rank, also where ``results`` do not depend on rows.

        :param results: row i for row i of ``Arrived``; those after the last one that arrived may be missing.
        :param expert_ids: those of dispatch.
        """
        results = _under_autocast(results, self.config.expert_dtype)
        weights = _under_autocast(_as_tensor(weights), "float32")
        expert_ids = _as_tensor(expert_ids)
        out: torch.Tensor = torch.ops.shunt.combine(results, expert_ids, weights, self.number, self._rows)
        self._rows = None
        return out

    def close(self) -> None:
        """Local. No more calls."""
        for one in (self._main, self._back, self._beside):
            one.close()

    def _forward(self, tokens: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._send_out(self._main, tokens, ids)

    def _send_out(
        self, through: AllToAll, tokens: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self._end_backward()
        dtype = getattr(torch, through.config.payload)
        rows = torch.zeros(self.max_rows, self.config.hidden, dtype=dtype, device=self._device)
        sent = through.dispatch_send(_side_by_side(tokens), _side_by_side(ids))
        # Copies: what the library shows ends with combine.
        if self._device.type == "cpu":
            received = through.dispatch_recv(sent, rows=rows)
            self._arrived = len(received)
        else:
            received = through.dispatch_recv(sent)
            self._arrived = len(received)
            rows[: self._arrived].copy_(received.rows[: self._arrived])
        return rows, received.starts.to(torch.int64, copy=True), received.counts.to(torch.int64, copy=True)

    def _bring_back(self, through: AllToAll, results: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        # On GPUs the host may not know how many of the N rows are needed, and hands over all.
        given = results[: self._arrived] if self._device.type == "cpu" else results
        out: torch.Tensor = through.combine(_side_by_side(given), _side_by_side(weights))
        return out

    def _backward_of_combine(
        self, grad: torch.Tensor, results: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        top_k = self.config.top_k
        rows, starts, _ = self._send_out(self._back, grad.contiguous(), ids)
        self._open = ids
        arrived = self._arrived
        # With every row come the weights and experts of its token, so that the row's own k is found.
        received = self._beside.dispatch(torch.cat([weights, ids.to(torch.float32)], 1), _side_by_side(ids))
        known = received.rows[:arrived]
        local = torch.arange(self.num_local_experts, device=self._device) + self._first_expert
        expert = torch.repeat_interleave(local, starts.diff())
        own = known[:, top_k:] == expert[:, None]
        nothing = torch.zeros((), device=self._device)
        weight = torch.where(own, known[:, :top_k], nothing).sum(1)
        wide = rows[:arrived].float()
        grad_results = torch.zeros_like(results)
        grad_results[:arrived] = (weight[:, None] * wide).to(results.dtype)
        products = (wide * results[:arrived].float()).sum(1)
        back = torch.zeros(self.max_rows, 2 * top_k, device=self._device)
        back[:arrived, :top_k] = torch.where(own, products[:, None], nothing)
        summed = self._bring_back(self._beside, back, torch.ones_like(weights))
        return grad_results, summed[:, :top_k].clone()

    def _backward_of_dispatch(self, grad: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        # Nearly always the backward of combine has dispatched this step already; _send_out ends one of other ids. Ranks
        # must agree, so it counts whether they are one tensor, not whether they are equal.
        if self._open is None or not self._open.is_set_to(ids):
            self._send_out(self._back, self._no_tokens(len(ids)), ids)
        self._open = None
        return self._bring_back(self._back, grad.contiguous(), torch.ones(ids.shape, device=self._device))

    def _end_backward(self) -> None:
        """Ends a backward step that nobody combined, as where tokens need no gradient."""
        if self._open is None:
            return
        tokens, self._open = len(self._open), None
        results = torch.zeros(
            self.max_rows, self.config.hidden, dtype=getattr(torch, self.config.token_dtype), device=self._device
        )
        self._bring_back(self._back, results, torch.zeros(tokens, self.config.top_k, device=self._device))

    def _no_tokens(self, count: int) -> torch.Tensor:
        dtype = getattr(torch, self.config.out_dtype)
        return torch.zeros(count, self.config.hidden, dtype=dtype, device=self._device)


def _side_by_side(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where the elements of a row do not follow each other."""
    if tensor.dim() != 2 or tensor.stride(1) == 1 or tensor.shape[1] == 1:
        return tensor
    return tensor.contiguous()


def _as_tensor(value: Any) -> torch.Tensor:
    """Also of the NumPy arrays that shunt.route returns, without a copy."""
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)


def _under_autocast(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    if tensor.device.type == "cpu":
        on = torch.is_autocast_cpu_enabled()
    else:
        on = torch.is_autocast_enabled()
    return tensor.to(getattr(torch, dtype)) if on and tensor.is_floating_point() else tensor


def _exchange(number: int) -> Exchange:
    found = _exchanges.get(number)
    if found is None:
        raise InvalidStateError(f"shunt: there is no Exchange number {number} in this process; it has gone")
    return found


def _dispatch(tokens: Any, ids: Any, exchange: int) -> Any:
    return _exchange(exchange)._forward(tokens, ids)


def _dispatch_shape(tokens: Any, ids: Any, exchange: int) -> Any:
    one = _exchange(exchange)
    local = one.num_local_experts
    return (
        tokens.new_empty((one.max_rows, one.config.hidden)),
        ids.new_empty((local + 1,), dtype=torch.int64),
        ids.new_empty((local,), dtype=torch.int64),
    )


def _combine(results: Any, ids: Any, weights: Any, exchange: int, rows: Any = None) -> Any:
    one = _exchange(exchange)
    # Before anything is sent, so that the call may be repeated.
    if weights.shape != ids.shape or weights.dtype != torch.float32:
        raise InvalidArgumentError(
            f"combine: weights is {list(weights.shape)} of {weights.dtype}; {list(ids.shape)} of float32 is needed"
        )
    return one._bring_back(one._main, results, weights)


def _combine_shape(results: Any, ids: Any, weights: Any, exchange: int, rows: Any = None) -> Any:
    dtype = getattr(torch, _exchange(exchange).config.out_dtype)
    return results.new_empty((ids.shape[0], results.shape[1]), dtype=dtype)


def _dispatch_backward(grad: Any, ids: Any, exchange: int) -> Any:
    return _exchange(exchange)._backward_of_dispatch(grad, ids)


def _dispatch_backward_shape(grad: Any, ids: Any, exchange: int) -> Any:
    return grad.new_empty((ids.shape[0], grad.shape[1]))


def _combine_backward(grad: Any, results: Any, ids: Any, weights: Any, exchange: int) -> Any:
    return _exchange(exchange)._backward_of_combine(grad, results, ids, weights)


def _combine_backward_shape(grad: Any, results: Any, ids: Any, weights: Any, exchange: int) -> Any:
    return torch.empty_like(results), torch.empty_like(weights)


_library = torch.library.Library("shunt", "DEF")
for _schema, _kernel, _shape in (
    ("dispatch(Tensor tokens, Tensor ids, int exchange) -> (Tensor, Tensor, Tensor)", _dispatch, _dispatch_shape),
    (
        "combine(Tensor results, Tensor ids, Tensor weights, int exchange, Tensor? rows=None) -> Tensor",
        _combine,
        _combine_shape,
    ),
    (
        "dispatch_backward(Tensor grad, Tensor ids, int exchange) -> Tensor",
        _dispatch_backward,
        _dispatch_backward_shape,
    ),
    (
        "combine_backward(Tensor grad, Tensor results, Tensor ids, Tensor weights, int exchange) -> (Tensor, Tensor)",
        _combine_backward,
        _combine_backward_shape,
    ),
):
    _name = _schema.split("(")[0]
    _library.define(_schema)
    _library.impl(_name, _kernel, "CPU")
    _library.impl(_name, _kernel, "CUDA")
    _library.impl(_name, _shape, "Meta")


def _keep_order() -> None:
    """Every rank calls the same operators in the same order, so a compiler must neither merge, drop nor move them."""
    try:
        from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

        for name in ("dispatch", "combine", "dispatch_backward", "combine_backward"):
            _register_effectful_op(getattr(torch.ops.shunt, name).default, _EffectType.ORDERED)
    except (ImportError, AttributeError):
        pass  # Before 2.4 there is no such thing.


_keep_order()


def _save_dispatch(ctx: Any, inputs: Any, output: Any) -> None:
    _, ids, ctx.exchange = inputs
    ctx.keep = _exchanges.get(ctx.exchange)  # Backward needs it, whoever else lets go
    ctx.save_for_backward(ids)


def _after_dispatch(ctx: Any, grad: Any, _starts: Any, _counts: Any) -> Any:
    return torch.ops.shunt.dispatch_backward(grad, *ctx.saved_tensors, ctx.exchange), None, None


def _save_combine(ctx: Any, inputs: Any, output: Any) -> None:
    results, ids, weights, ctx.exchange, *_ = inputs
    ctx.keep = _exchanges.get(ctx.exchange)
    ctx.save_for_backward(results, ids, weights)


def _after_combine(ctx: Any, grad: Any) -> Any:
    results, weights = torch.ops.shunt.combine_backward(grad, *ctx.saved_tensors, ctx.exchange)
    # The rows get none, but dispatch's backward runs then.
    return results, None, weights, None, None


def _save_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    pass


def _after_backward(ctx: Any, *_: Any) -> Any:
    raise InvalidStateError("shunt: gradients of gradients are not supported through dispatch and combine")


if hasattr(torch.library, "register_autograd"):
    torch.library.register_autograd("shunt::dispatch", _after_dispatch, setup_context=_save_dispatch, lib=_library)
    torch.library.register_autograd("shunt::combine", _after_combine, setup_context=_save_combine, lib=_library)
    for _name in ("dispatch_backward", "combine_backward"):
        torch.library.register_autograd(f"shunt::{_name}", _after_backward, lib=_library)
else:

    def _differentiable(name: str, save: Any, after: Any, steady: int) -> Any:
        """The operator ``name`` with gradients; its outputs from number ``steady`` on have none."""

        class Differentiable(torch.autograd.Function):  # type: ignore[misc]
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                # This class is what the operator calls for gradients; with the guard it calls the kernel.
                # A traceback must not hold the guard.
                guard = torch._C._AutoDispatchBelowAutograd()
                try:
                    output = getattr(torch.ops.shunt, name)(*inputs)
                finally:
                    del guard
                save(ctx, inputs, output)
                if steady > 0:
                    ctx.mark_non_differentiable(*output[steady:])
                return output

            backward = staticmethod(after)

        return Differentiable.apply

    _library.impl("dispatch", _differentiable("dispatch", _save_dispatch, _after_dispatch, 1), "Autograd")
    _library.impl("combine", _differentiable("combine", _save_combine, _after_combine, 0), "Autograd")
    for _name in ("dispatch_backward", "combine_backward"):
        _library.impl(_name, _differentiable(_name, _save_nothing, _after_backward, 0), "Autograd")
