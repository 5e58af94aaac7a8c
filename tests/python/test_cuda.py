"""AllToAll on CUDA tensors. What needs a GPU says why it skips; the rest is what a machine without one can show."""

from __future__ import annotations

import functools

import numpy as np
import oracle
import pytest

import shunt

torch = pytest.importorskip("torch")
torch.testing.assert_close(torch.zeros(1), torch.zeros(1))

KINDS = {"token_dtype": "float32", "expert_dtype": "float32", "out_dtype": "float32"}
CONFIG = shunt.Config(max_tokens=9, num_experts=5, top_k=2, hidden=24, **KINDS)
RANKS = 2


@functools.cache
def missing():
    """Why there are no ranks on a GPU here; empty where there are.

    A child looks: ranks are forked from a process that has not used CUDA.
    """
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    transport = {one.name: one for one in shunt.transports()}["cuda_ipc"]
    if not transport.available:
        return transport.reason
    return "" if shunt.run_ranks(lambda _: torch.cuda.is_available(), 1)[0] else "PyTorch sees no GPU"


@pytest.fixture
def gpu():
    if missing():
        pytest.skip(missing())


def on_gpu(function, *args):
    """Ranks on GPUs, which they share where there are fewer; each on a stream of its own, as sharing needs."""

    def rank(world):
        torch.cuda.set_device(world.device)
        with torch.cuda.stream(torch.cuda.Stream()):
            # Kernels of PyTorch are loaded before the first step: loading may wait for a peer's on the same GPU.
            warm = torch.ones(3, 4, device="cuda")
            torch.testing.assert_close(warm * 2, warm + warm)
            torch.cuda.synchronize()
            world.barrier()
            return function(world, *args)

    return shunt.run_ranks(rank, RANKS, transport="cuda_ipc")


def routes_of(seed=0):
    return [
        shunt.route("uniform+mask:0.2", tokens=9, experts=5, top_k=2, groups=RANKS, group=g, seed=seed)
        for g in range(RANKS)
    ]


def tokens_of(rank):
    return torch.randn(9, 24, generator=torch.Generator().manual_seed(rank))


def check_step(world, moe, routes, split=False):
    ids, weights = (torch.from_numpy(np.array(one)).cuda() for one in routes[world.rank])
    tokens = tokens_of(world.rank).cuda()
    if split:
        received = moe.dispatch_recv(moe.dispatch_send(tokens, ids.long()))
        sent = moe.combine_send(received.rows * 2)
        out = moe.combine_recv(sent, weights)
    else:
        received = moe.dispatch(tokens, ids)
        counts, starts, rows = received.counts.tolist(), received.starts.tolist(), received.rows.cpu()
        assert len(received) == starts[-1]
        assert received.num_rows == sum(counts)
        for local, expert in enumerate(oracle.experts_of(world.rank, 5, RANKS)):
            wanted = oracle.rows_for(expert, [one.ids for one in routes])
            assert counts[local] == len(wanted)
            for at, (source, token) in enumerate(wanted):
                assert torch.equal(rows[starts[local] + at], tokens_of(source)[token])
        out = moe.combine(received.rows * 2, weights)
    torch.cuda.synchronize()
    moe.check()
    expected = oracle.combined(tokens.cpu().numpy(), *routes[world.rank], lambda _: 2.0)
    torch.testing.assert_close(out.cpu().double(), torch.from_numpy(expected).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("gpu")
def test_steps_on_a_gpu_equal_the_oracle():
    def body(world):
        moe = shunt.AllToAll(world, CONFIG)
        assert isinstance(moe, shunt.CudaAllToAll)
        for seed in range(4):
            check_step(world, moe, routes_of(seed), split=seed % 2 == 1)
        world.barrier()
        return True

    assert on_gpu(body) == [True] * RANKS


@pytest.mark.usefixtures("gpu")
def test_results_written_in_place_and_bounds_on_the_device():
    def body(world):
        moe = shunt.AllToAll(world, CONFIG)
        ids, weights = (torch.from_numpy(np.array(one)).cuda() for one in routes_of()[world.rank])
        tokens = tokens_of(world.rank).cuda()
        live = torch.tensor([4], dtype=torch.int32, device="cuda")
        for given in (live, 4):
            received = moe.dispatch_recv(moe.dispatch_send(tokens, ids, live_tokens=given))
            moe.expert_output.copy_(received.rows)
            out = torch.zeros(9, 24, device="cuda")
            moe.combine_recv(moe.combine_send(), weights, out)
            torch.cuda.synchronize()
            moe.check()
            expected = oracle.combined(
                tokens.cpu().numpy()[:4], ids.cpu().numpy()[:4], weights.cpu().numpy()[:4], lambda _: 1.0
            )
            torch.testing.assert_close(
                out[:4].cpu().double(), torch.from_numpy(expected).double(), rtol=1e-5, atol=1e-5
            )
            assert bool((out[4:] == 0).all())
        world.barrier()

    on_gpu(body)


@pytest.mark.usefixtures("gpu")
def test_wrong_tensors_are_named_on_a_gpu():
    def body(world):
        moe = shunt.AllToAll(world, CONFIG)
        ids = torch.zeros(9, 2, dtype=torch.int32, device="cuda")
        with pytest.raises(
            shunt.InvalidArgumentError, match=r"tokens is on a device of DLPack type 1; tensors on cuda:"
        ):
            moe.dispatch(torch.zeros(9, 24), ids)
        with pytest.raises(shunt.InvalidArgumentError, match="tokens has 8 columns; 24 are needed"):
            moe.dispatch(torch.zeros(9, 8, device="cuda"), ids)
        with pytest.raises(shunt.InvalidArgumentError, match="expert_ids has 9 rows for 3 tokens"):
            moe.dispatch(torch.zeros(3, 24, device="cuda"), ids)
        with pytest.raises(shunt.InvalidArgumentError, match="the memory of this world lies on GPUs"):
            shunt.AllToAll(world, CONFIG, arrays="numpy")
        world.barrier()

    on_gpu(body)


@pytest.mark.usefixtures("gpu")
def test_code_for_pplx_kernels_on_a_gpu():
    from shunt.compat.pplx_kernels import AllToAll

    def body(world):
        ata = AllToAll.intranode(9, 6, 2, world.rank, world.size, 1, 24, 48, 0)
        local = 3
        ids, weights = shunt.route("uniform", tokens=9, experts=6, top_k=2, groups=RANKS, group=world.rank)
        ids, weights = torch.from_numpy(ids).cuda(), torch.from_numpy(weights).cuda()
        tokens = tokens_of(world.rank).bfloat16().cuda()
        counts = torch.zeros(local, dtype=torch.int32, device="cuda")
        rows = torch.zeros(local, 9 * RANKS, 24, dtype=torch.bfloat16, device="cuda")
        ata.dispatch(counts, rows, None, tokens, None, ids, None)
        out = torch.zeros(9, 24, dtype=torch.bfloat16, device="cuda")
        ata.combine(out, ids, weights, rows, None)
        torch.cuda.synchronize()
        expected = tokens.float() * weights.sum(1, keepdim=True)
        torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
        world.barrier()
        ata.destroy()
        return int(counts.sum())

    assert sum(on_gpu(body)) == RANKS * 9 * 2


@pytest.mark.usefixtures("gpu")
def test_packing_on_a_gpu_equals_the_cpu():
    def body(world):
        from shunt.pack import pack_moe_data_to_buffers

        ids, weights = (torch.from_numpy(np.array(one)) for one in shunt.route("uniform", tokens=9, experts=6, top_k=2))
        x = tokens_of(0)
        packed = []
        for device in ("cpu", "cuda"):
            buffers = [torch.zeros(4000, dtype=torch.uint8, device=device) for _ in range(2)]
            given = (one.to(device) for one in (x, ids, weights))
            sizes = pack_moe_data_to_buffers(*given, 6, 2, device, buffers)
            packed.append((sizes.cpu(), *(one.cpu() for one in buffers)))
        for cpu, cuda in zip(*packed, strict=True):
            assert torch.equal(cpu, cuda)

    on_gpu(body)


def test_a_world_in_host_memory_has_no_device():
    with shunt.World.single() as world:
        assert world.device is None
        with pytest.raises(shunt.UnavailableError, match="AllToAll on GPUs cannot run"):
            shunt.CudaAllToAll(world, CONFIG)


def test_without_a_gpu_the_transport_says_why():
    transport = {one.name: one for one in shunt.transports()}["cuda_ipc"]
    if transport.available:
        pytest.skip("there is a GPU")
    with pytest.raises(shunt.Error) as raised:
        shunt.run_ranks(lambda world: world.device, RANKS, transport="cuda_ipc")
    assert raised.value.code == "unavailable"
    assert transport.reason.split(":")[0] in str(raised.value)
