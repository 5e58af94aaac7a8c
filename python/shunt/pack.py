"""Items for each rank out of tokens, and back: the pack step of a plain all-to-all, on PyTorch tensors.

The calls have the arguments of the pack and unpack functions of UCCL's baseline benchmark. An item is a token's bytes,
its local expert id and its weight, side by side; those for a rank follow each other in the order (token, k). Built of
PyTorch's own operations, so they run where the tensors lie, on the CPU or on a GPU. ``AllToAll`` needs none of this.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ._errors import InvalidArgumentError


def _bytes_of(rows: torch.Tensor) -> torch.Tensor:
    """[N, bytes of a row] uint8 of [N] or [N, H]."""
    width = rows.element_size() * (rows.shape[1] if rows.dim() == 2 else 1)
    return rows.reshape(-1).view(torch.uint8).reshape(rows.shape[0], width)


def pack_moe_data_to_buffers(
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weights: torch.Tensor,
    num_experts: int,
    world_size: int,
    device: torch.device | str,
    buffers: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Writes to the front of ``buffers[r]`` what goes to rank r.

    :param x: [T, H] contiguous rows. :param topk_idx: [T, K] int32 or int64; -1 skips that k.
    :param topk_weights: [T, K]. :param num_experts: a multiple of ``world_size``.
    :param device: where the result lies.
    :param buffers: ``world_size`` of uint8, each large enough for its items.
    :returns: [world_size] int32 bytes for each rank.
    :raises InvalidArgumentError: nothing was written.
    """
    if world_size < 1 or num_experts % world_size != 0 or len(buffers) != world_size:
        raise InvalidArgumentError(
            f"pack: {num_experts} experts, {world_size} ranks and {len(buffers)} buffers; the experts must divide "
            "evenly and every rank have a buffer"
        )
    tokens, top_k = topk_idx.shape
    if x.dim() != 2 or x.shape[0] != tokens or topk_weights.shape != topk_idx.shape:
        raise InvalidArgumentError(
            f"pack: x is {list(x.shape)}, topk_idx {list(topk_idx.shape)}, topk_weights {list(topk_weights.shape)}; "
            "[T, H], [T, K] and [T, K] are needed"
        )
    flat = topk_idx.reshape(-1)
    if flat.numel() > 0 and (int(flat.min()) < -1 or int(flat.max()) >= num_experts):
        raise InvalidArgumentError(
            f"pack: expert ids from {int(flat.min())} to {int(flat.max())}; -1 to {num_experts - 1} are allowed"
        )
    local_experts = num_experts // world_size
    chosen = torch.nonzero(flat >= 0).reshape(-1)
    owner = torch.div(flat[chosen].long(), local_experts, rounding_mode="floor")
    counts = torch.bincount(owner, minlength=world_size).tolist()
    chosen = chosen[torch.argsort(owner, stable=True)]
    token = torch.div(chosen, top_k, rounding_mode="floor") if top_k > 0 else chosen
    items = torch.cat(
        [_bytes_of(x[token]), _bytes_of(flat[chosen] % local_experts), _bytes_of(topk_weights.reshape(-1)[chosen])], 1
    )
    item = items.shape[1]
    for rank, count in enumerate(counts):
        room = buffers[rank].numel()
        if buffers[rank].dtype != torch.uint8 or buffers[rank].dim() != 1 or room < count * item:
            raise InvalidArgumentError(
                f"pack: buffer {rank} is {list(buffers[rank].shape)} of {buffers[rank].dtype}; [{count * item}] of "
                "uint8 are needed"
            )
    begin = 0
    for rank, count in enumerate(counts):
        buffers[rank][: count * item].copy_(items[begin : begin + count].reshape(-1))
        begin += count
    return torch.tensor([count * item for count in counts], dtype=torch.int32, device=device)


def unpack_moe_data_from_buffers(
    buffers: Sequence[torch.Tensor],
    per_rank_recv_bytes: torch.Tensor,
    num_local_experts: int,
    hidden_dim: int,
    world_size: int,
    device: torch.device | str,
    x_dtype: torch.dtype,
    idx_dtype: torch.dtype,
    weight_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Reads the items that ``pack_moe_data_to_buffers`` wrote elsewhere; ``buffers[r]`` came from rank r.

    :param per_rank_recv_bytes: [world_size] bytes of items in each buffer.
    :returns: tokens [N, H], local expert ids [N], weights [N], in the order (rank, token, k), and the number of tokens
        for each of the ``num_local_experts``.
    :raises InvalidArgumentError: where bytes are no whole number of items, or an id is no local expert's.
    """
    sizes = [torch.empty(0, dtype=one).element_size() for one in (x_dtype, idx_dtype, weight_dtype)]
    widths = [hidden_dim * sizes[0], sizes[1], sizes[2]]
    item = sum(widths)
    lengths = per_rank_recv_bytes.tolist()
    if len(buffers) != world_size or len(lengths) != world_size:
        raise InvalidArgumentError(f"unpack: {len(buffers)} buffers and {len(lengths)} lengths for {world_size} ranks")
    for rank, length in enumerate(lengths):
        if length % item != 0 or not 0 <= length <= buffers[rank].numel():
            raise InvalidArgumentError(
                f"unpack: {length} bytes from rank {rank}, in a buffer of {buffers[rank].numel()}; whole items of "
                f"{item} bytes are needed"
            )
    items = torch.cat([buffers[rank][:length].reshape(-1, item) for rank, length in enumerate(lengths)]).to(device)
    # Copies at an offset that views of other types allow; contiguous() leaves a single item where it is.
    x, ids, weights = (part.clone(memory_format=torch.contiguous_format) for part in torch.split(items, widths, dim=1))
    count = items.shape[0]
    local = ids.view(idx_dtype).reshape(count)
    if count > 0 and (int(local.min()) < 0 or int(local.max()) >= num_local_experts):
        raise InvalidArgumentError(
            f"unpack: local experts from {int(local.min())} to {int(local.max())}; 0 to {num_local_experts - 1} are "
            "allowed"
        )
    counts = torch.bincount(local.long(), minlength=num_local_experts).tolist()
    return x.view(x_dtype).reshape(count, hidden_dim), local, weights.view(weight_dtype).reshape(count), counts
