"""Code in the style of pplx-kernels, over shunt.compat.pplx_kernels.

The cases that its own tests have (small and medium MoE, dp_size 2 and 4, every pair of element types, exact counts,
rows and scales as sets, combine against a reference), restated, and what they leave out: repeats, split phases, zero
tokens, masked choices, uneven ranks, bound_m.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import oracle
import pytest

import shunt

torch = pytest.importorskip("torch")

from shunt.compat import pplx_kernels  # noqa: E402
from shunt.compat.pplx_kernels import nvshmem  # noqa: E402
from shunt.compat.pplx_kernels.all_to_all import AllToAll  # noqa: E402

# What PyTorch imports when it is first used is imported before ranks are forked, not by each of them.
torch.testing.assert_close(torch.zeros(1), torch.zeros(1))


@dataclass(frozen=True)
class Moe:
    experts: int
    top_k: int
    hidden: int
    tokens: int
    block: int = 128

    def scales(self, element):
        return -(-self.hidden // self.block) if element == 1 else 0


SMALL = Moe(8, 3, 512, 10)
MEDIUM = Moe(64, 4, 1024, 20)
# PyTorch 1.13 has no fp8, so its bits stand in for it, as everywhere in this package.
IN_DTYPES = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.uint8, "float16": torch.float16}
OUT_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Group:
    """Tokens of one group: the same on each of its ranks, and known to all."""

    def __init__(self, moe, dtype, group, tokens, seed=0, mask=0.0):
        generator = np.random.default_rng([seed, group])
        chosen = [generator.permutation(moe.experts)[: moe.top_k] for _ in range(tokens)]
        self.ids = np.array(chosen, np.int32).reshape(tokens, moe.top_k)
        self.ids[generator.random(self.ids.shape) < mask] = -1
        self.weights = torch.from_numpy(generator.random((tokens, moe.top_k), np.float32))
        self.scale = None
        if dtype == torch.uint8:
            bits = generator.integers(0, 256, (tokens, moe.hidden)).astype(np.uint8)
            bits &= 0xBF  # Below 2, and no NaN
            self.x = torch.from_numpy(bits)
            self.scale = torch.from_numpy(0.5 + generator.random((tokens, moe.scales(1)), np.float32))
            wide = np.repeat(self.scale.numpy(), moe.block, axis=1)[:, : moe.hidden]
            self.values = torch.from_numpy(oracle.from_e4m3(bits) * wide)
        else:
            self.x = torch.from_numpy(generator.standard_normal((tokens, moe.hidden), np.float32)).to(dtype)
            self.values = self.x.float()

    def reference(self, out_dtype, factor=1.5):
        out = torch.zeros(self.values.shape)
        for t, k in itertools.product(range(len(self.ids)), range(self.ids.shape[1])):
            if self.ids[t, k] >= 0:
                out[t] += self.weights[t, k] * (self.values[t] * factor).to(out_dtype).float()
        return out.to(out_dtype)


def dequantised(x, scale, moe):
    if scale is None:
        return x.float()
    wide = scale.repeat_interleave(moe.block, dim=-1)[..., : moe.hidden]
    return torch.from_numpy(oracle.from_e4m3(x.numpy())) * wide


def make(world, moe, dp_size, element, way, **more):
    return getattr(AllToAll, way)(
        max_num_tokens=moe.tokens,
        num_experts=moe.experts,
        experts_per_token=moe.top_k,
        rank=world.rank,
        world_size=world.size,
        dp_size=dp_size,
        hidden_dim=moe.hidden,
        hidden_dim_bytes=moe.hidden * element,
        hidden_dim_scale_bytes=moe.scales(element) * 4,
        **more,
    )


def key(row):
    return row.contiguous().view(torch.uint8).numpy().tobytes()


def step(world, ata, moe, dp_size, groups, dtype, out_dtype, split=False, bound=None, int64=False):
    """One step, checked on this rank."""
    ranks_groups = world.size // dp_size
    group = groups[world.rank // dp_size]
    mine = oracle.experts_of(world.rank, moe.experts, world.size)
    local = -(-moe.experts // world.size)
    room = moe.tokens * ranks_groups
    counts = torch.full((local,), -7, dtype=torch.int32)
    x = torch.empty(local, room, moe.hidden, dtype=dtype)
    scales = None
    if group.scale is not None:
        # Column-major, as GEMMs want them.
        scales = torch.empty(local, moe.scales(1), room).transpose(1, 2)
    indices = torch.from_numpy(group.ids.astype(np.int64) if int64 else group.ids)
    dispatch = {
        "out_expert_num_tokens": counts,
        "out_expert_x": x,
        "out_expert_x_scale": scales,
        "dp_x": group.x,
        "dp_x_scale": group.scale,
        "indices": indices,
        "bound_m": bound,
    }
    if split:
        ata.dispatch(**dispatch, do_recv=False)
        ata.dispatch(**dispatch, do_send=False)
    else:
        ata.dispatch(**dispatch)

    live = [one.ids if bound is None else one.ids[: int(bound[0])] for one in groups]
    for slot, expert in enumerate(mine):
        expected = oracle.rows_for(expert, live)
        assert counts[slot] == len(expected)
        got = [key(x[slot, i]) for i in range(len(expected))]
        # pplx-kernels promises the set; here the order is fixed too.
        assert got == [key(groups[g].x[t]) for g, t in expected]
        if scales is not None:
            for i, (g, t) in enumerate(expected):
                assert torch.equal(scales[slot, i], groups[g].scale[t])
    assert (counts[len(mine) :] == 0).all()

    y = torch.full((local, room, moe.hidden), float("nan"), dtype=out_dtype)
    for slot in range(len(mine)):
        n = int(counts[slot])
        part = None if scales is None else scales[slot, :n]
        y[slot, :n] = (dequantised(x[slot, :n], part, moe) * 1.5).to(out_dtype)
    out = torch.full((moe.tokens, moe.hidden), 99.0, dtype=out_dtype)
    combine = {
        "out_tokens": out,
        "indices": indices,
        "weights": group.weights,
        "expert_y": y,
        "bound_m": bound,
    }
    if split:
        ata.combine(**combine, do_recv=False)
        y.fill_(float("nan"))  # May be reused
        ata.combine(**combine, do_send=False)
    else:
        ata.combine(**combine)
    m = len(live[world.rank // dp_size])
    torch.testing.assert_close(out[:m], group.reference(out_dtype)[:m], rtol=1e-2, atol=1e-3)
    assert (out[m:] == 99.0).all()
    return out


def groups_of(moe, dtype, count, seed=0, mask=0.0, tokens=None):
    sizes = tokens or [int(np.random.default_rng([99, seed, g]).integers(1, moe.tokens)) for g in range(count)]
    return [Group(moe, dtype, g, sizes[g], seed, mask) for g in range(count)]


@pytest.mark.parametrize("split", [False, True], ids=["whole", "halves"])
@pytest.mark.parametrize("way", ["internode", "intranode"])
@pytest.mark.parametrize("out_name", OUT_DTYPES)
@pytest.mark.parametrize("in_name", IN_DTYPES)
def test_small(in_name, out_name, way, split):
    dtype, out_dtype = IN_DTYPES[in_name], OUT_DTYPES[out_name]
    groups = groups_of(SMALL, dtype, 2)

    def rank(world):
        torch.set_num_threads(1)
        ata = make(world, SMALL, 2, dtype.itemsize if hasattr(dtype, "itemsize") else groups[0].x.element_size(), way)
        out = step(world, ata, SMALL, 2, groups, dtype, out_dtype, split)
        ata.destroy()
        with pytest.raises(shunt.InvalidStateError, match="destroyed"):
            step(world, ata, SMALL, 2, groups, dtype, out_dtype)
        return out.float().numpy()

    outs = shunt.run_ranks(rank, 4)
    np.testing.assert_array_equal(outs[0], outs[1])


@pytest.mark.parametrize("in_name", ["bfloat16", "float8_e4m3fn"])
def test_medium(in_name):
    dtype = IN_DTYPES[in_name]
    groups = groups_of(MEDIUM, dtype, 2)

    def rank(world):
        torch.set_num_threads(1)
        ata = make(world, MEDIUM, 4, groups[0].x.element_size(), "internode")
        step(world, ata, MEDIUM, 4, groups, dtype, torch.bfloat16)

    shunt.run_ranks(rank, 8)


def test_named_types_spare_the_widening():
    groups = groups_of(SMALL, torch.bfloat16, 4)

    def rank(world):
        torch.set_num_threads(1)
        wide = make(world, SMALL, 1, 2, "intranode")
        narrow = make(world, SMALL, 1, 2, "intranode", expert_dtype=torch.bfloat16, out_dtype=torch.bfloat16)
        outs = [step(world, ata, SMALL, 1, groups, torch.bfloat16, torch.bfloat16) for ata in (wide, narrow)]
        assert torch.equal(*outs)
        return narrow._inner.workspace_bytes < wide._inner.workspace_bytes

    assert shunt.run_ranks(rank, 4) == [True] * 4


def test_repeats_masks_and_bounds():
    """One object, many steps: other tokens each time, none at all, masked choices, a bound below m, int64 indices."""
    dtype = torch.float16

    def rank(world):
        torch.set_num_threads(1)
        ata = make(world, SMALL, 1, 2, "intranode")
        for seed in range(6):
            mask = 0.4 if seed % 2 else 0.0
            tokens = [0, 0, 0] if seed == 3 else [0, 5, 9] if seed == 4 else None
            groups = groups_of(SMALL, dtype, 3, seed, mask, tokens)
            step(world, ata, SMALL, 1, groups, dtype, torch.float16, split=seed % 3 == 0, int64=seed == 5)
        groups = groups_of(SMALL, dtype, 3, 7, 0.0, [6, 6, 6])
        for bound in (0, 4, 6):
            step(world, ata, SMALL, 1, groups, dtype, torch.bfloat16, bound=torch.tensor([bound], dtype=torch.int32))

    # Eight experts over three ranks: 3, 3 and 2.
    shunt.run_ranks(rank, 3)


def test_more_ranks_than_experts():
    moe = Moe(3, 2, 64, 4)
    groups = groups_of(moe, torch.bfloat16, 5)

    def rank(world):
        torch.set_num_threads(1)
        step(world, make(world, moe, 1, 2, "internode"), moe, 1, groups, torch.bfloat16, torch.bfloat16)

    shunt.run_ranks(rank, 5)


def test_wrong_use_is_named():
    def rank(world):
        with pytest.raises(shunt.InvalidArgumentError, match="rank 0 of 3 was given, but this process is rank"):
            AllToAll.intranode(4, 4, 2, 0, 3, 1, 64, 128, 0)
        with pytest.raises(shunt.InvalidArgumentError, match="hidden_dim_bytes is 100"):
            AllToAll.intranode(4, 4, 2, world.rank, 2, 1, 64, 100, 0)
        with pytest.raises(shunt.InvalidArgumentError, match="scales of elements of 1 byte"):
            AllToAll.intranode(4, 4, 2, world.rank, 2, 1, 64, 128, 16)
        moe = Moe(4, 2, 64, 4)
        ata = make(world, moe, 1, 2, "intranode")
        group = Group(moe, torch.bfloat16, world.rank, 3)
        counts = torch.zeros(2, dtype=torch.int32)
        x = torch.zeros(2, 8, 64, dtype=torch.bfloat16)
        out = torch.zeros(4, 64, dtype=torch.bfloat16)
        ids = torch.from_numpy(group.ids)
        with pytest.raises(shunt.InvalidStateError, match="to be received but was not sent"):
            ata.dispatch(counts, x, None, group.x, None, ids, None, do_send=False)
        with pytest.raises(shunt.InvalidStateError):
            ata.combine(out, ids, group.weights, x, None)
        with pytest.raises(shunt.InvalidArgumentError, match="must be tensors if"):
            ata.dispatch(counts, x, None, group.x, torch.zeros(3, 1), ids, None)
        # What is refused has moved nothing, so each of these is repeated.
        for wrong, text in (
            ({"out_expert_x": x[:, :, :32]}, r"out_expert_x is \[2, 8, 32\]; at least \[2, 8, 64\]"),
            ({"out_expert_x": x[:, :7]}, "out_expert_x is"),
            ({"out_expert_x": x.float()}, "out_expert_x has elements of torch.float32; dp_x has torch.bfloat16"),
            ({"out_expert_x": x.half()}, "out_expert_x has elements of torch.float16; dp_x has torch.bfloat16"),
            ({"out_expert_num_tokens": counts[:1]}, "out_expert_num_tokens is"),
            ({"do_send": False, "do_recv": False}, "at least one is needed"),
        ):
            given = {"out_expert_num_tokens": counts, "out_expert_x": x} | wrong
            with pytest.raises(shunt.InvalidArgumentError, match=text):
                ata.dispatch(out_expert_x_scale=None, dp_x=group.x, dp_x_scale=None, indices=ids, bound_m=None, **given)
        ata.dispatch(counts, x, None, group.x, None, ids, None)
        for wrong, text in (
            ({"expert_y": x[:, :, :32]}, "expert_y is"),
            ({"expert_y": x.double()}, "expert_y has elements of torch.float64"),
            ({"weights": group.weights.double()}, "weights has elements of torch.float64"),
            ({"weights": group.weights[:, :1]}, "and weights"),
            ({"out_tokens": out[:2]}, r"out_tokens is \[2, 64\]; at least \[3, 64\]"),
            ({"out_tokens": out.double()}, "out_tokens has elements of torch.float64"),
            ({"do_send": False, "do_recv": False}, "at least one is needed"),
        ):
            given = {"out_tokens": out, "weights": group.weights, "expert_y": x} | wrong
            with pytest.raises(shunt.InvalidArgumentError, match=text):
                ata.combine(indices=ids, bound_m=None, **given)
        ata.combine(out, ids, group.weights, x, None)
        return out[:3].tolist() == group.reference(torch.bfloat16, 1.0).tolist()

    assert shunt.run_ranks(rank, 2) == [True, True]


@pytest.mark.parametrize("in_name", ["bfloat16", "float8_e4m3fn"])
def test_compiled(in_name):
    """With graph breaks where the calls are: they are no operators of PyTorch."""
    if not hasattr(torch, "compile"):
        pytest.skip(f"PyTorch {torch.__version__} has no torch.compile")
    dtype = IN_DTYPES[in_name]
    groups = groups_of(SMALL, dtype, 2)

    def rank(world):
        torch.set_num_threads(1)
        ata = make(world, SMALL, 1, groups[0].x.element_size(), "intranode")
        ata.dispatch = torch.compile(ata.dispatch, backend="eager")
        ata.combine = torch.compile(ata.combine, backend="eager")
        step(world, ata, SMALL, 1, groups, dtype, torch.bfloat16)

    shunt.run_ranks(rank, 2)


def test_names_of_the_package():
    names = [one for one in dir(nvshmem) if one.startswith("nvshmem_") and one != "nvshmem_malloc"]
    assert [one for one in pplx_kernels.__all__ if one.startswith("nvshmem_")] == names
    assert all(getattr(pplx_kernels, one) is getattr(nvshmem, one) for one in names)


def test_nvshmem_helpers():
    def rank(world):
        assert (nvshmem.nvshmem_my_pe(), nvshmem.nvshmem_n_pes()) == (world.rank, 3)
        uid = nvshmem.nvshmem_alloc_empty_unique_id()
        assert uid.shape == (nvshmem.nvshmem_unique_id_size(),)
        assert nvshmem.nvshmem_init(uid, world.rank, 3) == 0
        source = nvshmem.nvshmem_malloc((3, 5), torch.float32, torch.device("cpu"))
        source += torch.arange(3)[:, None] + 10 * world.rank
        dest = nvshmem.nvshmem_malloc((3, 5), torch.float32, "cpu")
        nvshmem.nvshmem_alltoall(dest, source)
        nvshmem.nvshmem_barrier_all()
        nvshmem.nvshmem_barrier_all_on_current_stream()
        assert torch.equal(dest, (10.0 * torch.arange(3) + world.rank)[:, None].expand(3, 5))
        nvshmem.nvshmem_finalize()
        with pytest.raises(shunt.InvalidStateError):
            nvshmem.nvshmem_my_pe()

    shunt.run_ranks(rank, 3)
