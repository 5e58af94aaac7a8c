"""Operators of PyTorch: gradients against a dense layer and against differences, shapes without data, compilation."""

from __future__ import annotations

import subprocess
import sys

import pytest

import shunt

torch = pytest.importorskip("torch")
# What PyTorch imports when it is first used is imported before ranks are forked, not by each of them.
torch.testing.assert_close(torch.zeros(1), torch.zeros(1))
if hasattr(torch, "compile"):
    import torch._dynamo

from shunt.torch import Exchange  # noqa: E402

EXPERTS, TOP_K, HIDDEN, TOKENS, RANKS = 7, 3, 16, 6, 3


def config_of(**more):
    fields = {"max_tokens": TOKENS, "num_experts": EXPERTS, "top_k": TOP_K, "hidden": HIDDEN}
    kind = more.pop("dtype", "float32")
    return shunt.Config(**(fields | more), token_dtype=kind, expert_dtype=kind, out_dtype=kind)


def inputs_of(rank, tokens=TOKENS, spec="uniform+mask:0.2"):
    ids, weights = shunt.route(spec, tokens=tokens, experts=EXPERTS, top_k=TOP_K, groups=RANKS, group=rank, seed=5)
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(tokens, HIDDEN, generator=generator)
    return x.requires_grad_(True), torch.from_numpy(ids), torch.from_numpy(weights).requires_grad_(True)


def matrices():
    return torch.randn(EXPERTS, HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(99)) / 4


def experts_of(rank):
    share, extra = divmod(EXPERTS, RANKS)
    first = rank * share + min(rank, extra)
    return range(first, first + share + (rank < extra))


def layer(exchange, x, ids, weights, own):
    """Experts are tanh(x W), own: [L, H, H]."""
    rows, starts, counts = exchange.dispatch(x, ids)
    results = torch.zeros_like(rows)
    for local, (start, count) in enumerate(zip(starts.tolist(), counts.tolist())):  # noqa: B905
        results = results.index_put(
            (torch.arange(start, start + count),), torch.tanh(rows[start : start + count] @ own[local])
        )
    return exchange.combine(results, ids, weights)


def dense(x, ids, weights, every):
    out = []
    for t in range(len(ids)):
        terms = [weights[t, k] * torch.tanh(x[t] @ every[int(ids[t, k])]) for k in range(TOP_K) if int(ids[t, k]) >= 0]
        out.append(sum(terms, torch.zeros(HIDDEN)))
    return torch.stack(out) if out else 0 * x


def loss_of(out, rank):
    return (out * torch.linspace(-1, 1 + rank, out.numel()).reshape(out.shape)).sum()


@pytest.mark.parametrize("more", [{}, {"layout": "padded"}, {"alignment": 4}], ids=str)
@pytest.mark.parametrize("tokens", [[6, 6, 6], [4, 0, 6]], ids=str)
def test_gradients_equal_those_of_a_dense_layer(more, tokens):
    every = matrices().requires_grad_(True)
    expected = []
    for r in range(RANKS):
        x, ids, weights = inputs_of(r, tokens[r])
        loss_of(dense(x, ids, weights, every), r).backward()
        expected.append((x.grad, weights.grad))

    def rank(world):
        torch.set_num_threads(1)
        exchange = Exchange(world, config_of(**more))
        own = every.detach()[list(experts_of(world.rank))].requires_grad_(True)
        for _ in range(2):
            x, ids, weights = inputs_of(world.rank, tokens[world.rank])
            own.grad = None
            out = layer(exchange, x, ids, weights, own)
            torch.testing.assert_close(out, dense(x, ids, weights, every).detach())
            loss_of(out, world.rank).backward()
            for got, want in zip((x.grad, weights.grad), expected[world.rank]):  # noqa: B905
                torch.testing.assert_close(got, torch.zeros_like(got) if want is None else want, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own.grad, every.grad[list(experts_of(world.rank))], rtol=1e-4, atol=1e-5)

    shunt.run_ranks(rank, RANKS)


def test_gradients_equal_differences():
    """gradcheck: all three are linear in each argument, so large steps are exact but for rounding."""

    def rank(world):
        torch.set_num_threads(1)
        exchange = Exchange(world, config_of())
        x, ids, weights = inputs_of(world.rank, 2)  # Few: all ranks take a step for every element
        factor = torch.linspace(0.5, 2, exchange.max_rows)[:, None]

        def step(x, weights):
            return exchange.combine(exchange.dispatch(x, ids).rows * factor, ids, weights)

        return torch.autograd.gradcheck(step, (x, weights), eps=0.25, atol=1e-4, rtol=1e-3, nondet_tol=0.0)

    assert shunt.run_ranks(rank, 2) == [True, True]


def test_gradients_of_replicas_are_those_of_one():
    """Two groups of two ranks: each rank of a group has all gradients of its group's tokens."""
    every = matrices().requires_grad_(True)
    expected = []
    for group in range(2):
        x, ids, weights = inputs_of(group, spec="uniform")
        loss_of(dense(x, ids, weights, every), group).backward()
        expected.append((x.grad, weights.grad))

    def rank(world):
        torch.set_num_threads(1)
        exchange = Exchange(world, config_of(dp_size=2, check_replicas=True))
        group = world.rank // 2
        first = exchange._first_expert
        own = every.detach()[first : first + exchange.num_local_experts].requires_grad_(True)
        x, ids, weights = inputs_of(group, spec="uniform")
        out = layer(exchange, x, ids, weights, own)
        loss_of(out, group).backward()
        for got, want in zip((x.grad, weights.grad), expected[group]):  # noqa: B905
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            own.grad, every.grad[first : first + exchange.num_local_experts], rtol=1e-4, atol=1e-5
        )

    shunt.run_ranks(rank, 4)


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("expert_dtype", ["float32", "bfloat16"])
def test_gradients_have_the_types_of_what_they_belong_to(expert_dtype, out_dtype):
    config = shunt.Config(
        max_tokens=TOKENS, num_experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN, token_dtype="bfloat16",
        expert_dtype=expert_dtype, out_dtype=out_dtype,
    )  # fmt: skip

    def rank(world):
        torch.set_num_threads(1)
        exchange = Exchange(world, config)
        for _ in range(2):
            x, ids, weights = inputs_of(world.rank)
            tokens = x.detach().bfloat16().requires_grad_(True)
            rows = exchange.dispatch(tokens, ids).rows
            results = (2 * rows).to(getattr(torch, expert_dtype))
            results.retain_grad()
            out = exchange.combine(results, ids, weights)
            assert (out.dtype, results.grad) == (getattr(torch, out_dtype), None)
            factors = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
            (out * factors).sum().backward()
            assert (tokens.grad.dtype, results.grad.dtype) == (torch.bfloat16, results.dtype)
            used = torch.where(ids >= 0, weights.detach(), torch.zeros(()))
            wanted = 2 * factors.float() * used.sum(1, keepdim=True)
            torch.testing.assert_close(tokens.grad.float(), wanted, rtol=3e-2, atol=3e-2)
            sums = (2 * tokens.detach().float() * factors.float()).sum(1, keepdim=True)
            wanted = torch.where(ids >= 0, sums.expand(-1, TOP_K), torch.zeros(()))
            torch.testing.assert_close(weights.grad, wanted, rtol=3e-2, atol=6e-2)

    shunt.run_ranks(rank, 2)


def test_a_backward_that_stops_at_the_experts():
    """Tokens without gradients: the next step ends the open one."""

    def rank(world):
        torch.set_num_threads(1)
        exchange = Exchange(world, config_of(dtype="bfloat16"))
        sums = []
        for _ in range(3):
            x, ids, weights = inputs_of(world.rank)
            rows = exchange.dispatch(x.detach().bfloat16(), ids).rows
            scale = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
            exchange.combine(rows * scale, ids, weights).float().sum().backward()
            sums.append(float(scale.grad))
        return sums[0] == sums[1] == sums[2]

    assert shunt.run_ranks(rank, RANKS) == [True] * RANKS


def test_a_backward_of_dispatch_alone():
    """A loss on the rows: no combine has dispatched the backward step."""

    def rank(world):
        torch.set_num_threads(1)
        exchange = Exchange(world, config_of())
        x, ids, weights = inputs_of(world.rank)
        rows = exchange.dispatch(x, ids).rows
        exchange.combine(rows.detach(), ids, weights.detach())
        rows.sum().backward()
        expected = (ids >= 0).sum(1, keepdim=True).float().expand(-1, HIDDEN)
        return torch.equal(x.grad, expected)

    assert shunt.run_ranks(rank, RANKS) == [True] * RANKS


def test_a_backward_of_dispatch_after_another_open_step():
    """The open backward step is of another layer's ids."""

    def rank(world):
        torch.set_num_threads(1)
        exchange = Exchange(world, config_of())
        x, ids, weights = inputs_of(world.rank)
        first = exchange.combine(exchange.dispatch(x.detach(), ids).rows.requires_grad_(), ids, weights)
        y, others, _ = inputs_of(world.rank, 3, "uniform")
        rows = exchange.dispatch(y, others).rows
        exchange.combine(rows.detach(), others, torch.ones(3, TOP_K))
        first.sum().backward()
        rows.sum().backward()
        return torch.equal(y.grad, torch.full_like(y, TOP_K))

    assert shunt.run_ranks(rank, RANKS) == [True] * RANKS


def test_shapes_without_data():
    with shunt.World.single() as world:
        exchange = Exchange(world, config_of())
        x, ids, weights = torch.empty(4, HIDDEN), torch.zeros(4, TOP_K, dtype=torch.int32), torch.empty(4, TOP_K)
        rows, starts, counts = exchange.dispatch(x.to("meta"), ids.to("meta"))
        assert (rows.shape, starts.shape, counts.shape) == ((exchange.max_rows, HIDDEN), (EXPERTS + 1,), (EXPERTS,))
        assert (rows.dtype, starts.dtype, counts.dtype) == (torch.float32, torch.int64, torch.int64)
        assert exchange.combine(rows, ids.to("meta"), weights.to("meta")).shape == (4, HIDDEN)


def test_a_compiled_layer_has_the_same_gradients():
    if not hasattr(torch, "compile"):
        pytest.skip(f"PyTorch {torch.__version__} has no torch.compile")

    def rank(world):
        torch.set_num_threads(1)
        exchange = Exchange(world, config_of())
        factor = torch.linspace(0.5, 2, exchange.max_rows)[:, None]

        def step(x, ids, weights):
            return torch.tanh(exchange.combine(torch.sin(exchange.dispatch(x, ids).rows) * factor, ids, weights))

        found = []
        for one in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
            x, ids, weights = inputs_of(world.rank)
            out = one(x, ids, weights)
            loss_of(out, world.rank).backward()
            found.append((out.detach(), x.grad, weights.grad))
        for eager, compiled in zip(*found, strict=True):
            torch.testing.assert_close(eager, compiled)

    shunt.run_ranks(rank, 2)


def test_an_exported_layer_runs_with_other_numbers_of_tokens():
    if not hasattr(torch, "export"):
        pytest.skip(f"PyTorch {torch.__version__} has no torch.export")

    class Layer(torch.nn.Module):
        def __init__(self, exchange):
            super().__init__()
            self.exchange = exchange
            self.factor = torch.nn.Parameter(torch.linspace(0.5, 2, exchange.max_rows)[:, None])

        def forward(self, x, ids, weights):
            return self.exchange.combine(torch.sin(self.exchange.dispatch(x, ids).rows) * self.factor, ids, weights)

    def rank(world):
        torch.set_num_threads(1)
        layer = Layer(Exchange(world, config_of()))
        tokens = torch.export.Dim("tokens", min=2, max=TOKENS)
        given = tuple(one.detach() for one in inputs_of(world.rank))
        exported = torch.export.export(layer, given, dynamic_shapes=({0: tokens},) * 3)
        names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
        assert [one for one in names if one.startswith("shunt.")] == ["shunt.dispatch.default", "shunt.combine.default"]
        for count in (TOKENS, 4):
            inputs = tuple(one.detach() for one in inputs_of(world.rank, count))
            torch.testing.assert_close(exported.module()(*inputs), layer(*inputs))
        return True

    assert shunt.run_ranks(rank, 2) == [True] * 2


def test_a_rank_whose_results_do_not_depend_on_rows():
    """All tokens go to rank 0; the other has none to work on, and takes part in the backward of dispatch too."""

    def rank(world):
        torch.set_num_threads(1)
        exchange = Exchange(world, config_of(top_k=1, deadline=20))
        factor = torch.tensor(3.0, requires_grad=True)
        for _ in range(2):
            x = torch.ones(TOKENS, HIDDEN, requires_grad=True)
            ids = torch.zeros(TOKENS, 1, dtype=torch.int64)
            rows, _, counts = exchange.dispatch(x, ids)
            results = torch.zeros_like(rows)
            count = int(counts[0]) if world.rank == 0 else 0
            if count > 0:
                results[:count] = factor * rows[:count]
            exchange.combine(results, ids, torch.ones(TOKENS, 1, requires_grad=True)).sum().backward()
            assert torch.equal(x.grad, torch.full_like(x, 3))
            world.barrier(20)

    shunt.run_ranks(rank, 2)


def test_results_without_a_tail_and_arguments_of_any_layout():
    x, ids, weights = inputs_of(0)
    factor = torch.linspace(0.5, 2, 2 * HIDDEN)[::2]
    with shunt.World.single() as world:
        exchange = Exchange(world, config_of(max_tokens=2 * TOKENS))
        grads = []
        for layout in (lambda one: one, lambda one: one.t().contiguous().t()):
            x.grad = weights.grad = None
            rows, starts, _ = exchange.dispatch(layout(x), layout(ids))
            count = int(starts[-1])
            assert count < len(rows)
            results = layout(torch.cat([rows[:2], rows[2:count]]) * factor)
            out = exchange.combine(results, layout(ids), layout(weights))
            loss_of(layout(out), 0).backward()
            grads.append((out.detach(), x.grad, weights.grad))
        for plain, strided in zip(*grads):  # noqa: B905
            assert torch.equal(plain, strided)


def test_autocast_is_followed():
    x, ids, weights = inputs_of(0)
    with shunt.World.single() as world:
        exchange = Exchange(world, config_of())
        experts = torch.nn.Linear(HIDDEN, HIDDEN)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = exchange.combine(experts(exchange.dispatch(x.bfloat16(), ids).rows), ids, weights.bfloat16())
        assert out.dtype == torch.float32
        out.sum().backward()
        assert x.grad.abs().sum() > 0
        assert experts.weight.grad.abs().sum() > 0


def test_an_error_leaves_autograd_on():
    x, ids, weights = inputs_of(0, spec="uniform")
    with shunt.World.single() as world:
        exchange = Exchange(world, config_of(max_recv_rows=TOP_K))
        kept = []
        try:
            exchange.dispatch(x, ids)
        except shunt.RowOverflowError as error:
            kept.append(error)
            assert (2 * x).requires_grad
        assert (2 * x).requires_grad
        rows = exchange.dispatch(x[:1], ids[:1]).rows
        # What is refused has sent nothing.
        for wrong in (weights.double()[:1], weights[:1, :1], weights[:2]):
            with pytest.raises(shunt.InvalidArgumentError, match="combine: weights is"):
                exchange.combine(rows, ids[:1], wrong)
        assert exchange.combine(rows, ids[:1], weights[:1]).requires_grad
        assert len(kept) == 1


def test_backward_needs_no_other_hold_on_the_exchange():
    x, ids, weights = inputs_of(0, spec="uniform")
    with shunt.World.single() as world:
        exchange = Exchange(world, config_of())
        out = exchange.combine(exchange.dispatch(x, ids).rows, ids, torch.ones(TOKENS, TOP_K))
        del exchange
        out.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, TOP_K))
    assert weights.grad is None


def test_gradients_of_gradients_are_refused():
    x, ids, weights = inputs_of(0)
    with shunt.World.single() as world:
        exchange = Exchange(world, config_of())
        out = exchange.combine(exchange.dispatch(x, ids).rows ** 3, ids, weights)
        (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        with pytest.raises(shunt.InvalidStateError, match="gradients of gradients"):
            (grad**2).sum().backward()


def test_a_compiler_keeps_every_call_in_its_place():
    """Equal dispatches are not merged, unused ones not dropped, and none comes before the combine above it."""
    if not hasattr(torch, "compile"):
        pytest.skip(f"PyTorch {torch.__version__} has no torch.compile")

    def rank(world):
        torch.set_num_threads(1)
        exchange = Exchange(world, config_of())
        _, ids, _ = inputs_of(world.rank)

        def twice(x, y, w):
            first = exchange.combine(exchange.dispatch(x, ids).rows * 2, ids, w)
            return first, exchange.combine(exchange.dispatch(x, ids).rows * 3, ids, w)

        def unused(x, y, w):
            exchange.dispatch(x, ids)
            return x, exchange.combine(torch.zeros(exchange.max_rows, HIDDEN), ids, w)

        def two(x, y, w):
            first = exchange.combine(torch.tanh(exchange.dispatch(x, ids).rows @ torch.ones(HIDDEN, HIDDEN)), ids, w)
            second = exchange.combine(torch.tanh(exchange.dispatch(y, ids).rows), ids, w)
            return second, first

        for function in (twice, unused, two):
            found = []
            for one in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
                x, _, w = inputs_of(world.rank)
                y = (2 * x.detach()).requires_grad_(True)
                outs = one(x, y, w)
                loss_of(outs[0] + outs[1], world.rank).backward()
                found.append([*outs, x.grad, w.grad])
            for eager, compiled in zip(*found, strict=True):
                torch.testing.assert_close(eager, compiled)

    shunt.run_ranks(rank, 2)


def test_what_cannot_have_gradients_is_refused():
    with shunt.World.single() as world:
        with pytest.raises(shunt.InvalidArgumentError, match="bfloat16 without scales"):
            Exchange(world, shunt.Config(max_tokens=1, num_experts=2, top_k=1, hidden=8, payload="float8_e4m3fn"))
        with pytest.raises(shunt.InvalidArgumentError, match='delivery is "view"'):
            Exchange(world, config_of(delivery="view"))
        exchange = Exchange(world, config_of())
        number = exchange.number
        del exchange
        with pytest.raises(shunt.InvalidStateError, match=f"no Exchange number {number}"):
            torch.ops.shunt.dispatch(torch.zeros(1, HIDDEN), torch.zeros(1, TOP_K, dtype=torch.int32), number)


def test_a_graph_in_a_script_s_globals_ends_quietly():
    text = """
import numpy, shunt, torch
from shunt.torch import Exchange
config = shunt.Config(max_tokens=2, num_experts=2, top_k=1, hidden=8, token_dtype="float32",
    expert_dtype="float32", out_dtype="float32")
exchange = Exchange(shunt.World.single(), config)
tokens = torch.ones(2, 8, requires_grad=True)
ids, weights = numpy.zeros((2, 1), numpy.int32), numpy.ones((2, 1), numpy.float32)  # arrays will do
rows, starts, counts = exchange.dispatch(tokens, ids)
out = exchange.combine(rows, ids, weights)
out.sum().backward()
print(tokens.grad.sum().item(), flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "16.0\n", "")
