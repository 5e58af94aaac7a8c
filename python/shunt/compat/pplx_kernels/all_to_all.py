"""AllToAll with the constructors and calls of pplx-kernels."""

from __future__ import annotations

from typing import Any

import torch

from ... import _all_to_all
from ..._arrays import dtype_name
from ..._errors import InvalidArgumentError, InvalidStateError
from ..._world import World
from ._meeting import world_of

_ELEMENTS = {1: "float8_e4m3fn", 2: "bfloat16", 4: "float32"}
_SAME_BITS = {1: torch.uint8, 2: torch.int16}
_RESULTS = (torch.float32, torch.float16, torch.bfloat16)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Dispatch moves bytes, so one element type stands for all of its size."""
    same = _SAME_BITS.get(tensor.element_size())
    return tensor.detach() if same is None else tensor.detach().view(same)


def _scale_block(hidden_dim: int, scales: int) -> int:
    block = -(-hidden_dim // scales)
    if -(-hidden_dim // block) != scales:
        raise InvalidArgumentError(
            f"{scales} scales for a hidden_dim of {hidden_dim}: no block size gives that many scales"
        )
    return block


class AllToAll:
    """Dispatch and combine as pplx-kernels calls them; made by ``intranode`` or ``internode``.

    Letters: m tokens of this rank's group, M ``max_num_tokens``, L local experts, D = world_size / dp_size groups, K
    experts of a token, H ``hidden_dim``, S scales of a token.
    """

    def __init__(self, world: World, config: _all_to_all.Config) -> None:
        self._inner: _all_to_all.AllToAll | None = _all_to_all.AllToAll(world, config, arrays="torch")
        self._config = config
        self._room = config.max_tokens * (world.size // config.dp_size)
        self._has_scales = config.scale != "none"
        self._dispatching: _all_to_all.DispatchSent | None = None
        self._combining: _all_to_all.CombineSent | None = None
        share, extra = divmod(config.num_experts, world.size)
        self._local = share + (world.rank < extra)
        self._counts = [0] * self._local
        self._tokens = 0

    @classmethod
    def intranode(
        cls,
        max_num_tokens: int,
        num_experts: int,
        experts_per_token: int,
        rank: int,
        world_size: int,
        dp_size: int,
        hidden_dim: int,
        hidden_dim_bytes: int,
        hidden_dim_scale_bytes: int,
        group_name: str = "default",
        max_sm_count: int = 0,
        *,
        expert_dtype: Any = "float32",
        out_dtype: Any = "float32",
    ) -> AllToAll:
        """Collective. ``group_name`` and ``max_sm_count`` have no effect.

        :param hidden_dim_bytes: bytes of a token: 1, 2 or 4 for each element.
        :param hidden_dim_scale_bytes: bytes of a token's float32 scales, 0 without; with elements of one byte only.
        :param expert_dtype: beyond pplx-kernels: the type of ``expert_y``. Left at float32, the float16 and bfloat16
            results of experts are widened on their way, which costs time and memory but no bit.
        :param out_dtype: beyond pplx-kernels: the type of ``out_tokens``. Left at float32, a narrower one is rounded
            to after the sum, which gives the same bits.
        """
        if hidden_dim < 1 or hidden_dim_bytes % hidden_dim != 0 or hidden_dim_bytes // hidden_dim not in _ELEMENTS:
            raise InvalidArgumentError(
                f"pplx_kernels: hidden_dim_bytes is {hidden_dim_bytes} for a hidden_dim of {hidden_dim}; 1, 2 and 4 "
                "bytes for each element are allowed"
            )
        element = hidden_dim_bytes // hidden_dim
        scale: dict[str, Any] = {}
        if hidden_dim_scale_bytes > 0:
            if element != 1 or hidden_dim_scale_bytes % 4 != 0:
                raise InvalidArgumentError(
                    f"pplx_kernels: hidden_dim_scale_bytes is {hidden_dim_scale_bytes} with elements of {element} "
                    "bytes; float32 scales of elements of 1 byte are allowed"
                )
            block = _scale_block(hidden_dim, hidden_dim_scale_bytes // 4)
            scale = {"scale": "float32", "scale_block": block}
        config = _all_to_all.Config(
            max_tokens=max_num_tokens,
            num_experts=num_experts,
            top_k=experts_per_token,
            hidden=hidden_dim,
            token_dtype=_ELEMENTS[element],
            expert_dtype=expert_dtype,
            out_dtype=out_dtype,
            dp_size=dp_size,
            layout="padded",
            **scale,
        )
        return cls(world_of(rank, world_size), config)

    @classmethod
    def internode(
        cls,
        max_num_tokens: int,
        num_experts: int,
        experts_per_token: int,
        rank: int,
        world_size: int,
        dp_size: int,
        hidden_dim: int,
        hidden_dim_bytes: int,
        hidden_dim_scale_bytes: int,
        max_sm_count: int = 0,
        *,
        expert_dtype: Any = "float32",
        out_dtype: Any = "float32",
    ) -> AllToAll:
        """The same as ``intranode``: the world knows how its ranks reach each other."""
        return cls.intranode(
            max_num_tokens,
            num_experts,
            experts_per_token,
            rank,
            world_size,
            dp_size,
            hidden_dim,
            hidden_dim_bytes,
            hidden_dim_scale_bytes,
            max_sm_count=max_sm_count,
            expert_dtype=expert_dtype,
            out_dtype=out_dtype,
        )

    def dispatch(
        self,
        out_expert_num_tokens: torch.Tensor,
        out_expert_x: torch.Tensor,
        out_expert_x_scale: torch.Tensor | None,
        dp_x: torch.Tensor,
        dp_x_scale: torch.Tensor | None,
        indices: torch.Tensor,
        bound_m: torch.Tensor | None,
        do_send: bool = True,
        do_recv: bool = True,
    ) -> None:
        """Brings every token to its experts; the halves may be called one by one.

        :param out_expert_num_tokens: [>= L] int32, written: tokens of each local expert, 0 beyond L.
        :param out_expert_x: [>= L, M * D, H], written up to each expert's count, in the order (group, token).
        :param out_expert_x_scale: [>= L, M * D, S] float32 of any strides, written likewise; None without scales.
        :param dp_x: [m, H]. :param dp_x_scale: [m, S] float32; None without scales.
        :param indices: [m, K] uint32, int32 or int64; the highest number (-1) skips that k.
        :param bound_m: [1]: only the first so many tokens count. Read at the send.
        """
        inner = self._get()
        self._check_halves(do_send, do_recv)
        if (dp_x_scale is not None) != self._has_scales or (out_expert_x_scale is not None) != self._has_scales:
            raise InvalidArgumentError(
                "pplx_kernels: dp_x_scale and out_expert_x_scale must be tensors if hidden_dim_scale_bytes is not 0, "
                "else None"
            )
        # All that is wrong is found before anything moves.
        if do_recv:
            self._check_destination(out_expert_num_tokens, out_expert_x, out_expert_x_scale, dp_x)
        if do_send:
            if self._dispatching is not None:
                raise InvalidStateError("pplx_kernels: dispatch has been sent and not yet received")
            live = None if bound_m is None else int(bound_m.reshape(-1)[0])
            self._dispatching = inner.dispatch_send(
                _bits(dp_x),
                indices.contiguous(),
                scales=None if dp_x_scale is None else dp_x_scale.contiguous(),
                live_tokens=live,
            )
            self._tokens = dp_x.shape[0] if live is None else live
        if do_recv:
            if self._dispatching is None:
                raise InvalidStateError("pplx_kernels: dispatch is to be received but was not sent")
            sent, self._dispatching = self._dispatching, None
            self._receive(inner.dispatch_recv(sent), out_expert_num_tokens, out_expert_x, out_expert_x_scale)

    def _receive(
        self,
        received: _all_to_all.Received,
        out_expert_num_tokens: torch.Tensor,
        out_expert_x: torch.Tensor,
        out_expert_x_scale: torch.Tensor | None,
    ) -> None:
        counts = received.counts
        self._counts = counts.tolist()
        out_expert_num_tokens[: self._local].copy_(counts)
        out_expert_num_tokens[self._local :].zero_()
        rows = _bits(received.rows)
        target = _bits(out_expert_x)
        scales = received.scales
        for expert, count in enumerate(self._counts):
            first = expert * self._room
            target[expert, :count].copy_(rows[first : first + count])
            if scales is not None and out_expert_x_scale is not None:
                out_expert_x_scale[expert, :count].copy_(scales[first : first + count])

    def combine(
        self,
        out_tokens: torch.Tensor,
        indices: torch.Tensor,
        weights: torch.Tensor,
        expert_y: torch.Tensor,
        bound_m: torch.Tensor | None,
        do_send: bool = True,
        do_recv: bool = True,
    ) -> None:
        """Brings the results back: out_tokens[t] = sum over k of weights[t, k] * the result of t's k-th expert.

        :param out_tokens: [>= m, H] float32, float16 or bfloat16; the first m rows are written.
        :param indices: those of dispatch, which Shunt remembers: only their shape is looked at.
        :param weights: [m, K] float32. :param expert_y: [>= L, M * D, H] float32, float16 or bfloat16, read up to
            each expert's count.
        :param bound_m: as in dispatch; the number given there counts.
        """
        inner = self._get()
        self._check_halves(do_send, do_recv)
        if do_recv:
            self._check_sum(out_tokens, indices, weights)
        if do_send:
            if self._combining is not None:
                raise InvalidStateError("pplx_kernels: combine has been sent and not yet received")
            self._combining = self._return(inner, expert_y)
        if do_recv:
            if self._combining is None:
                raise InvalidStateError("pplx_kernels: combine is to be received but was not sent")
            if dtype_name(out_tokens.dtype) == self._config.out_dtype:
                inner.combine_recv(self._combining, weights, out_tokens)
            else:
                wide = inner.combine_recv(self._combining, weights)
                out_tokens[: self._tokens].copy_(wide)
            self._combining = None

    def _return(self, inner: _all_to_all.AllToAll, expert_y: torch.Tensor) -> _all_to_all.CombineSent:
        most = max(self._counts, default=0)
        self._check_experts(expert_y, "expert_y", self._config.hidden, most)
        if expert_y.dtype not in _RESULTS:
            raise InvalidArgumentError(
                f"pplx_kernels: expert_y has elements of {expert_y.dtype}; float32, float16 and bfloat16 are allowed"
            )
        results = inner.expert_output
        for expert, count in enumerate(self._counts):
            first = expert * self._room
            results[first : first + count].copy_(expert_y[expert, :count].detach())
        return inner.combine_send()

    @staticmethod
    def _check_halves(do_send: bool, do_recv: bool) -> None:
        if not do_send and not do_recv:
            raise InvalidArgumentError("pplx_kernels: do_send and do_recv are both False; at least one is needed")

    def _check_destination(
        self,
        out_expert_num_tokens: torch.Tensor,
        out_expert_x: torch.Tensor,
        out_expert_x_scale: torch.Tensor | None,
        dp_x: torch.Tensor,
    ) -> None:
        if out_expert_num_tokens.dim() != 1 or out_expert_num_tokens.shape[0] < self._local:
            raise InvalidArgumentError(
                f"pplx_kernels: out_expert_num_tokens is {list(out_expert_num_tokens.shape)}; at least "
                f"[{self._local}] is needed"
            )
        self._check_experts(out_expert_x, "out_expert_x", self._config.hidden, self._room)
        given, wanted = out_expert_x.dtype, dp_x.dtype
        # Integers of the size stand for the bits.
        both_floats = given.is_floating_point and wanted.is_floating_point
        if out_expert_x.element_size() != dp_x.element_size() or (both_floats and given != wanted):
            raise InvalidArgumentError(f"pplx_kernels: out_expert_x has elements of {given}; dp_x has {wanted}")
        if out_expert_x_scale is not None:
            columns = -(-self._config.hidden // self._config.scale_block)
            self._check_experts(out_expert_x_scale, "out_expert_x_scale", columns, self._room)

    def _check_sum(self, out_tokens: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> None:
        tokens, hidden = self._tokens, self._config.hidden
        if indices.dim() != 2 or indices.shape[0] < tokens or weights.shape != indices.shape:
            raise InvalidArgumentError(
                f"pplx_kernels: indices is {list(indices.shape)} and weights {list(weights.shape)} for a step of "
                f"{tokens} tokens"
            )
        if weights.dtype != torch.float32:
            raise InvalidArgumentError(f"pplx_kernels: weights has elements of {weights.dtype}; float32 is needed")
        if out_tokens.dim() != 2 or out_tokens.shape[0] < tokens or out_tokens.shape[1] != hidden:
            raise InvalidArgumentError(
                f"pplx_kernels: out_tokens is {list(out_tokens.shape)}; at least [{tokens}, {hidden}] is needed"
            )
        if out_tokens.dtype not in _RESULTS:
            raise InvalidArgumentError(
                f"pplx_kernels: out_tokens has elements of {out_tokens.dtype}; float32, float16 and bfloat16 are "
                "allowed"
            )

    def _check_experts(self, tensor: torch.Tensor, name: str, columns: int, rows: int) -> None:
        shape = list(tensor.shape)
        if len(shape) != 3 or shape[0] < self._local or shape[1] < rows or shape[2] != columns:
            raise InvalidArgumentError(
                f"pplx_kernels: {name} is {shape}; at least [{self._local}, {rows}, {columns}] is needed"
            )

    def _get(self) -> _all_to_all.AllToAll:
        if self._inner is None:
            raise InvalidStateError("pplx_kernels: this AllToAll has been destroyed")
        return self._inner

    def destroy(self) -> None:
        """Local. No more calls."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None
