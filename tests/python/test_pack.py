"""Packing by rank, against plain loops."""

from __future__ import annotations

import pytest

import shunt

torch = pytest.importorskip("torch")

from shunt.pack import pack_moe_data_to_buffers, unpack_moe_data_from_buffers  # noqa: E402

EXPERTS, RANKS, HIDDEN, TOP_K = 12, 3, 10, 4


def inputs_of(rank, dtype, idx_dtype, tokens):
    ids, weights = shunt.route(
        "uniform+mask:0.2", tokens=tokens, experts=EXPERTS, top_k=TOP_K, groups=RANKS, group=rank, seed=1
    )
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(rank)).to(dtype)
    return x, torch.from_numpy(ids).to(idx_dtype), torch.from_numpy(weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("idx_dtype", [torch.int32, torch.int64])
def test_what_is_packed_comes_out(dtype, idx_dtype):
    given = [inputs_of(rank, dtype, idx_dtype, tokens) for rank, tokens in enumerate((7, 0, 5))]
    sent = [[torch.zeros(4000, dtype=torch.uint8) for _ in range(RANKS)] for _ in range(RANKS)]
    sizes = [
        pack_moe_data_to_buffers(*one, EXPERTS, RANKS, "cpu", buffers) for one, buffers in zip(given, sent, strict=True)
    ]
    share = EXPERTS // RANKS
    for rank in range(RANKS):
        buffers = [sent[source][rank] for source in range(RANKS)]
        lengths = torch.stack([size[rank] for size in sizes])
        x, ids, weights, counts = unpack_moe_data_from_buffers(
            buffers, lengths, share, HIDDEN, RANKS, "cpu", dtype, idx_dtype, torch.float32
        )
        expected = [
            (source, t, k, int(given[source][1][t, k]) - rank * share)
            for source in range(RANKS)
            for t in range(len(given[source][0]))
            for k in range(TOP_K)
            if int(given[source][1][t, k]) >= 0 and int(given[source][1][t, k]) // share == rank
        ]
        assert ids.tolist() == [expert for _, _, _, expert in expected]
        assert ids.dtype == idx_dtype
        assert weights.tolist() == [float(given[source][2][t, k]) for source, t, k, _ in expected]
        assert torch.equal(x, torch.stack([given[source][0][t] for source, t, _, _ in expected]))
        assert counts == [ids.tolist().count(expert) for expert in range(share)]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_single_item_and_none(rows):
    """A hidden of 5: an item's id lies at no multiple of its size."""
    x, ids, weights = torch.arange(5.0).to(torch.bfloat16).reshape(1, 5), torch.tensor([[3]]), torch.tensor([[0.5]])
    buffers = [torch.zeros(100, dtype=torch.uint8) for _ in range(2)]
    sizes = pack_moe_data_to_buffers(x[:rows], ids[:rows], weights[:rows], 4, 2, "cpu", buffers)
    lengths = torch.stack([torch.zeros((), dtype=torch.int32), sizes[1]])
    back = unpack_moe_data_from_buffers(
        [buffers[0], buffers[1]], lengths, 2, 5, 2, "cpu", torch.bfloat16, torch.int64, torch.float32
    )
    assert torch.equal(back[0], x[:rows])
    assert (back[1].tolist(), back[2].tolist(), back[3]) == ([1] * rows, [0.5] * rows, [0, rows])


def test_wrong_arguments_are_named():
    x, ids, weights = inputs_of(0, torch.float32, torch.int64, 4)
    buffers = [torch.full((8,), 7, dtype=torch.uint8) for _ in range(RANKS)]
    with pytest.raises(shunt.InvalidArgumentError, match=r"buffer \d is \[8\]"):
        pack_moe_data_to_buffers(x, ids, weights, EXPERTS, RANKS, "cpu", buffers)
    assert all(bool((one == 7).all()) for one in buffers)
    with pytest.raises(shunt.InvalidArgumentError, match="must divide evenly"):
        pack_moe_data_to_buffers(x, ids, weights, 13, RANKS, "cpu", buffers)
    with pytest.raises(shunt.InvalidArgumentError, match="-1 to 11 are allowed"):
        pack_moe_data_to_buffers(x, ids + 12, weights, EXPERTS, RANKS, "cpu", buffers)
    with pytest.raises(shunt.InvalidArgumentError, match="whole items of 52 bytes"):
        unpack_moe_data_from_buffers(
            buffers, torch.tensor([8, 0, 0]), 4, HIDDEN, RANKS, "cpu", torch.float32, torch.int64, torch.float32
        )
