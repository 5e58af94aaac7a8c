"""Steps on NumPy arrays, in worlds of forked ranks."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import oracle
import pytest

import shunt


def config_of(dtype="float32", **more):
    fields = {"max_tokens": 12, "num_experts": 7, "top_k": 3, "hidden": 40, "token_dtype": dtype}
    fields |= {"expert_dtype": dtype, "out_dtype": dtype} | more
    return shunt.Config(**fields)


def routings(config, groups, spec="uniform+uneven", tokens=12, seed=3):
    return [
        shunt.route(
            spec, tokens=tokens, experts=config.num_experts, top_k=config.top_k, groups=groups, group=g, seed=seed
        )
        for g in range(groups)
    ]


def tokens_of(group, count, hidden=40, seed=0):
    return np.random.default_rng([seed, group]).standard_normal((count, hidden)).astype(np.float32)


def factor(expert):
    return 0.25 * (expert + 1)


def one_step(world, moe, config, routes, seed=0, split=False):
    """One step in float32, checked on this rank against the oracle."""
    group = world.rank // config.dp_size
    ids, weights = routes[group]
    tokens = tokens_of(group, len(ids), config.hidden, seed)
    if split:
        received = moe.dispatch_recv(moe.dispatch_send(tokens, ids))
    else:
        received = moe.dispatch(tokens, ids)
    all_ids = [one.ids for one in routes]
    results = np.zeros((len(received), config.hidden), np.float32)
    mine = oracle.experts_of(world.rank, config.num_experts, world.size)
    assert len(received.counts) == len(mine)
    for local, expert in enumerate(mine):
        expected = oracle.rows_for(expert, all_ids)
        first = int(received.starts[local])
        assert int(received.counts[local]) == len(expected)
        for row, (source, token) in enumerate(expected, first):
            sent = tokens_of(source, len(all_ids[source]), config.hidden, seed)[token]
            got = received.view_row(row) if config.delivery == "view" else received.rows[row]
            np.testing.assert_array_equal(got, sent)
            results[row] = factor(expert) * got
    assert received.num_rows == sum(len(oracle.rows_for(e, all_ids)) for e in mine)
    out = moe.combine_recv(moe.combine_send(results), weights) if split else moe.combine(results, weights)
    assert out.shape == (len(ids), config.hidden)
    np.testing.assert_allclose(out, oracle.combined(tokens, ids, weights, factor), rtol=1e-5, atol=1e-5)
    return out


@pytest.mark.parametrize("ranks", [1, 3, 8])
@pytest.mark.parametrize(
    "more", [{}, {"layout": "padded"}, {"delivery": "view"}, {"alignment": 8, "movement": "push"}], ids=str
)
def test_step_equals_oracle(ranks, more):
    config = config_of(**more)
    routes = routings(config, ranks, "uniform+mask:0.2+uneven")

    def rank(world):
        moe = shunt.AllToAll(world, config)
        for seed in range(3):
            one_step(world, moe, config, routes, seed, split=seed == 1)
        return world.rank

    assert shunt.run_ranks(rank, ranks) == list(range(ranks))


def test_groups_of_replicas_get_the_same_result():
    config = config_of(dp_size=2, counts_by_group=True, check_replicas=True)
    routes = routings(config, 2)

    def rank(world):
        return one_step(world, shunt.AllToAll(world, config), config, routes)

    outs = shunt.run_ranks(rank, 4)
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[2], outs[3])


def test_ranks_without_tokens():
    config = config_of()
    empty = shunt.Routing(np.zeros((0, 3), np.int32), np.zeros((0, 3), np.float32))
    routes = [empty, routings(config, 1, "uniform")[0], empty]

    def rank(world):
        moe = shunt.AllToAll(world, config)
        one_step(world, moe, config, routes)
        one_step(world, moe, config, [empty] * 3)
        one_step(world, moe, config, routes)

    shunt.run_ranks(rank, 3)


def test_several_nodes_give_the_same_bits():
    if not {one.name: one for one in shunt.transports()}["shm"].available:
        pytest.skip("no shared memory")
    config = config_of()
    routes = routings(config, 4)

    def rank(world):
        return one_step(world, shunt.AllToAll(world, config), config, routes)

    for a, b in zip(shunt.run_ranks(rank, 4), shunt.run_ranks(rank, 4, transport="shm", nodes=2), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["numpy", "ml_dtypes"])
def test_bfloat16_in_and_out(kind):
    if kind == "ml_dtypes":
        bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    config = config_of("bfloat16")
    routes = routings(config, 2, "uniform")

    def rank(world):
        moe = shunt.AllToAll(world, config, arrays=kind)
        ids, weights = routes[world.rank]
        bits = oracle.bf16_bits(tokens_of(world.rank, len(ids)))
        received = moe.dispatch(bits.view(bfloat16) if kind == "ml_dtypes" else bits, ids)
        kept = bfloat16 if kind == "ml_dtypes" else np.uint16
        assert received.rows.dtype == kept
        out = moe.combine(received.rows, weights)
        assert out.dtype == kept
        # Experts that change nothing: the sum in float32 in k order, rounded once.
        sums = np.zeros((len(ids), config.hidden), np.float64)
        for k in range(config.top_k):
            # One fused multiply and add: exact in float64 for 8 and 24 bits, then rounded.
            exact = weights[:, k : k + 1].astype(np.float64) * oracle.from_bf16(bits).astype(np.float64) + sums
            sums = exact.astype(np.float32).astype(np.float64)
        np.testing.assert_array_equal(out.view(np.uint16), oracle.bf16_bits(sums))

    shunt.run_ranks(rank, 2)


def test_fp8_tokens_are_quantised_on_the_way():
    config = config_of("float32", payload="float8_e4m3fn", scale="float32", scale_block=16, delivery="rows", hidden=40)
    routes = routings(config, 2, "uniform")

    def rank(world):
        moe = shunt.AllToAll(world, config)
        ids, _ = routes[world.rank]
        tokens = tokens_of(world.rank, len(ids))
        received = moe.dispatch(tokens, ids)
        assert received.rows.dtype == np.uint8
        assert received.scales.shape == (len(received), 3)
        values = oracle.from_e4m3(received.rows) * np.repeat(received.scales, 16, axis=1)[:, :40]
        at = 0
        for expert in oracle.experts_of(world.rank, config.num_experts, 2):
            for source, token in oracle.rows_for(expert, [one.ids for one in routes]):
                sent = tokens_of(source, 12)[token]
                np.testing.assert_allclose(values[at], sent, rtol=0.07, atol=0.03)
                at += 1
        # Copies of them outlive the step.
        moe.combine(values.astype(np.float32), routes[world.rank].weights)
        rows = np.zeros((moe.max_rows, 40), np.uint8)
        scales = np.zeros((moe.max_rows, 3), np.float32)
        again = moe.dispatch_recv(moe.dispatch_send(tokens, ids), rows=rows, scales=scales)
        kept = len(again)
        moe.combine(values.astype(np.float32), routes[world.rank].weights)
        assert again.rows is rows
        np.testing.assert_allclose(
            oracle.from_e4m3(rows[:kept]) * np.repeat(scales[:kept], 16, axis=1)[:, :40], values, rtol=0, atol=0
        )

    shunt.run_ranks(rank, 2)


def test_fp8_tokens_with_their_own_scales():
    config = config_of("float8_e4m3fn", scale="ue8m0", scale_block=16, expert_dtype="float32", out_dtype="float32")
    ids = np.array([[0, 3, 6], [1, -1, 2]], np.int64)

    def rank(world):
        moe = shunt.AllToAll(world, config)
        tokens = np.full((2, 40), 0x38 + world.rank, np.uint8)
        scales = np.full((2, 3), 120 + world.rank, np.uint8)
        tokens[1] += 2
        received = moe.dispatch(tokens, ids, scales=scales)
        mine = oracle.experts_of(world.rank, config.num_experts, 2)
        expected = [oracle.rows_for(expert, [ids, ids]) for expert in mine]
        assert received.counts.tolist() == [len(one) for one in expected]
        assert len(received) == sum(received.counts)
        results = np.zeros((len(received), 40), np.float32)
        row = 0
        for expert, sources in zip(mine, expected, strict=True):
            for source, token in sources:
                assert set(received.rows[row]) == {0x38 + source + 2 * token}
                assert set(received.scales[row]) == {120 + source}
                results[row] = 10 * expert + source
                row += 1
        out = moe.combine(results, np.ones((2, 3), np.float32))
        np.testing.assert_array_equal(out[0], 10 * (0 + 3 + 6) + 3 * world.rank)
        np.testing.assert_array_equal(out[1], 10 * (1 + 2) + 2 * world.rank)

    shunt.run_ranks(rank, 2)


def test_symmetric_memory_spares_the_copies():
    config = config_of()
    routes = routings(config, 2, "uniform")

    def rank(world):
        moe = shunt.AllToAll(world, config)
        ids, weights = routes[world.rank]
        tokens = tokens_of(world.rank, len(ids))
        moe.token_buffer[: len(ids)] = tokens
        received = moe.dispatch(moe.token_buffer[: len(ids)], ids)
        np.multiply(received.rows, 2, out=moe.expert_output[: len(received)])
        out = moe.combine(None, weights)
        np.testing.assert_allclose(out, oracle.combined(tokens, ids, weights, lambda _: 2.0), rtol=1e-5, atol=1e-5)
        counters = moe.byte_counters
        assert (counters["staged_tokens"], counters["staged_outputs"]) == (0, 0)
        received = moe.dispatch(tokens, ids)
        results = np.array(received.rows)
        moe.combine(results, weights)
        counters = moe.byte_counters
        assert (counters["staged_tokens"], counters["staged_outputs"]) == (tokens.nbytes, results.nbytes)

    shunt.run_ranks(rank, 2)


def test_arguments_that_are_read_where_they_lie():
    config = config_of()
    _, weights = routings(config, 1, "uniform")[0]
    ids = routings(config, 1, "uniform")[0].ids

    def rank(world):
        moe = shunt.AllToAll(world, config)
        tokens = tokens_of(0, 12)
        expected = oracle.combined(tokens[:5], ids[:5], weights, lambda _: 1.0)
        wide = np.zeros((12, 100), np.float32)
        wide[:, 30:70] = tokens
        frozen = tokens.copy()
        frozen.setflags(write=False)
        for given in (wide[:, 30:70], frozen, memoryview(tokens)):
            for chosen in (ids, ids.astype(np.int64), ids.astype(np.uint32), ids.astype(np.uint64)):
                received = moe.dispatch(np.asarray(given)[:5] if given is not frozen else frozen[:5], chosen[:5])
                out = np.full((6, 80), 7, np.float32)
                moe.combine(np.array(received.rows), weights[:5], out[:5, 40:])
                np.testing.assert_allclose(out[:5, 40:], expected, rtol=1e-5, atol=1e-5)
                assert np.all(out[5] == 7)
                assert np.all(out[:, :40] == 7)
        # The first five of twelve, and a sum that goes on.
        received = moe.dispatch(tokens, ids, live_tokens=5)
        start = np.ones((5, 40), np.float32)
        moe.combine(np.array(received.rows), weights, start, accumulate=True)
        np.testing.assert_allclose(start, 1 + expected, rtol=1e-5, atol=1e-5)
        # Memory of an array whose owner is gone in between.
        received = moe.dispatch(tokens_of(0, 12), ids)
        gc.collect()
        np.testing.assert_array_equal(np.sort(received.rows[:, 0]), np.sort(np.repeat(tokens[:, 0], 3)))
        moe.combine(np.array(received.rows), weights)

    shunt.run_ranks(rank, 1)


def test_received_ends_with_combine_send():
    config = config_of()
    ids, weights = routings(config, 1, "uniform")[0]
    with shunt.World.single() as world:
        moe = shunt.AllToAll(world, config)
        received = moe.dispatch(tokens_of(0, 12), ids)
        rows, counts = received.rows, received.counts
        assert received.valid
        sent = moe.combine_send(np.array(rows))
        assert not received.valid
        for name in ("rows", "scales", "starts", "counts", "counts_by_group", "num_rows"):
            with pytest.raises(shunt.InvalidStateError, match="rank 0: these rows ended with combine_send"):
                getattr(received, name)
        moe.combine_recv(sent, weights)
        with pytest.raises(shunt.InvalidStateError):
            moe.combine_recv(sent, weights)
        with pytest.raises(shunt.InvalidStateError):
            moe.dispatch_recv(moe_sent_twice(moe, ids))
        with pytest.raises(ValueError, match="read-only"):
            rows[0, 0] = 1
        moe.close()
    del moe, world, received
    gc.collect()
    # Their memory is there as long as they are.
    assert rows.sum() != 0
    assert counts.sum() == 36


def moe_sent_twice(moe, ids):
    sent = moe.dispatch_send(tokens_of(0, 12), ids)
    moe.dispatch_recv(sent)
    return sent


def test_errors_have_the_text_of_the_library():
    config = config_of()
    ids, weights = routings(config, 1, "uniform")[0]
    with shunt.World.single() as world:
        moe = shunt.AllToAll(world, config)
        tokens = tokens_of(0, 12)
        wrong = ids.copy()
        wrong[4, 1] = 7
        with pytest.raises(shunt.InvalidArgumentError, match=r"rank 0: token 4, k 1: expert id 7 is outside \[-1, 6\]"):
            moe.dispatch(tokens, wrong)
        with pytest.raises(ValueError, match="float32"):
            moe.dispatch(tokens.astype(np.float64), ids)
        with pytest.raises(shunt.InvalidArgumentError, match="2 are needed"):
            moe.dispatch(tokens[0], ids)
        with pytest.raises(shunt.InvalidArgumentError, match="expert_ids has 11 rows for 12 tokens"):
            moe.dispatch(tokens, ids[:11])
        with pytest.raises(shunt.InvalidArgumentError, match="side by side"):
            moe.dispatch(np.asfortranarray(tokens), ids)
        with pytest.raises(TypeError, match="tokens is a list; an array that speaks DLPack"):
            moe.dispatch([[1.0]], ids)
        # Nothing of this moved anything.
        received = moe.dispatch(tokens, ids)
        with pytest.raises(shunt.InvalidArgumentError, match="weights"):
            moe.combine(np.array(received.rows), weights[:3])
        moe.combine(None, weights)
        received = moe.dispatch(tokens, ids)
        sent = moe.combine_send(np.array(received.rows))
        frozen = np.zeros((12, 40), np.float32)
        frozen.setflags(write=False)
        with pytest.raises(TypeError, match="out is a read-only ndarray"):
            moe.combine_recv(sent, weights, frozen)
        moe.combine_recv(sent, weights)
    with pytest.raises(shunt.InvalidArgumentError, match="top_k is 9"), shunt.World.single() as world:
        shunt.AllToAll(world, config_of(top_k=9))
    with pytest.raises(shunt.InvalidArgumentError, match='layout is "loose"; allowed are packed, padded'):
        shunt.AllToAll(shunt.World.single(), config_of(layout="loose"))
    with pytest.raises(shunt.InvalidArgumentError, match="allowed are numpy"):
        shunt.AllToAll(shunt.World.single(), config, arrays="jax")
    with pytest.raises(shunt.InvalidStateError, match="closed"):
        world.barrier()


def test_a_refused_combine_is_repeated():
    config = config_of()
    ids, weights = routings(config, 1, "uniform")[0]
    tokens = tokens_of(0, 12)
    expected = oracle.combined(tokens, ids, weights, lambda _: 1.0)
    frozen = np.zeros((12, 40), np.float32)
    frozen.setflags(write=False)

    def rank(world):
        moe = shunt.AllToAll(world, config)
        for wrong, out, error in (
            (weights.astype(np.float64), None, shunt.InvalidArgumentError),
            (weights.tolist(), None, TypeError),
            (weights, frozen, TypeError),
            (weights, np.zeros((12, 39), np.float32), shunt.InvalidArgumentError),
        ):
            received = moe.dispatch(tokens, ids)
            results = np.array(received.rows)
            for _ in range(2):
                with pytest.raises(error):
                    moe.combine(results, wrong, out)
            np.testing.assert_allclose(moe.combine(results, weights), expected * world.size, rtol=1e-5, atol=1e-5)

    shunt.run_ranks(rank, 1)


def test_copies_need_room_for_any_step():
    config = config_of()
    ids, weights = routings(config, 1, "uniform")[0]
    with shunt.World.single() as world:
        moe = shunt.AllToAll(world, config)
        sent = moe.dispatch_send(tokens_of(0, 12), ids)
        for shape in ((2, 40), (moe.max_rows - 1, 40), (moe.max_rows, 39)):
            with pytest.raises(shunt.InvalidArgumentError, match=rf"at least \[{moe.max_rows}, 40\] is needed"):
                moe.dispatch_recv(sent, rows=np.zeros(shape, np.float32))
        rows = np.zeros((moe.max_rows, 40), np.float32)
        assert moe.dispatch_recv(sent, rows=rows).num_rows == 36
        moe.combine(rows[:36], weights)


def test_what_only_speaks_dlpack():
    class Bare:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    config = config_of()
    ids, weights = routings(config, 1, "uniform")[0]
    tokens = tokens_of(0, 12)
    expected = oracle.combined(tokens, ids, weights, lambda _: 1.0)
    with shunt.World.single() as world:
        moe = shunt.AllToAll(world, config)
        for given, chosen in ((tokens, ids), (Bare(tokens), ids), (Bare(tokens), Bare(ids))):
            received = moe.dispatch(given, chosen)
            out = moe.combine(Bare(np.array(received.rows)), weights)
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config_type", "given"),
    [("float16", "bfloat16"), ("float8_e4m3fn", "float8_e5m2"), ("float8_e4m3fn", "float8_e4m3fnuz")],
)
def test_arrays_of_ml_dtypes_keep_their_types(config_type, given):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    config = config_of("float16", max_tokens=2, num_experts=2, top_k=1, hidden=8, token_dtype=config_type)
    ids = np.zeros((2, 1), np.int32)

    class Own(np.ndarray):
        pass

    with shunt.World.single() as world:
        moe = shunt.AllToAll(world, config, arrays="ml_dtypes")
        wrong = np.full((2, 8), 1.5, getattr(ml_dtypes, given))
        with pytest.raises(shunt.InvalidArgumentError, match=f"tokens has elements of {given}; {config_type} is"):
            moe.dispatch(wrong, ids)
        right = np.full((2, 8), 1.5, getattr(ml_dtypes, config_type, config_type))
        received = moe.dispatch(right.view(Own), ids)
        np.testing.assert_array_equal(received.rows, right)
        wrong = np.ones((2, 8), ml_dtypes.bfloat16)
        with pytest.raises(shunt.InvalidArgumentError, match="results has elements of bfloat16; float16 is"):
            moe.combine(wrong, np.ones((2, 1), np.float32))
        with pytest.raises(shunt.InvalidArgumentError, match="out has elements of bfloat16; float16 is"):
            moe.combine(np.ones((2, 8), np.float16), np.ones((2, 1), np.float32), wrong)


def test_a_step_that_does_not_fit_is_void():
    config = config_of(max_recv_rows=3, num_experts=2, top_k=1)

    def rank(world):
        moe = shunt.AllToAll(world, config)
        everywhere = np.zeros((12, 1), np.int32)
        with pytest.raises(shunt.RowOverflowError, match="max_recv_rows is 3") as raised:
            moe.dispatch(tokens_of(0, 12), everywhere)
        assert raised.value.code == "overflow"
        received = moe.dispatch(tokens_of(0, 1), everywhere[:1] + world.rank)
        return received.num_rows

    assert shunt.run_ranks(rank, 2) == [1, 1]


def test_a_wait_lets_other_threads_run():
    config = config_of(deadline=20)
    ids, weights = routings(config, 1, "uniform")[0]
    wake, awake = os.pipe()

    def rank(world):
        moe = shunt.AllToAll(world, config)
        if world.rank == 1:
            os.read(wake, 1)  # Written by the other rank's second thread, while its first one waits for this one.
            received = moe.dispatch(tokens_of(0, 12), ids)
            moe.combine(np.array(received.rows), weights)
            return None
        sent = moe.dispatch_send(tokens_of(0, 12), ids)
        refused = []

        def other():
            # Before the wait begins this call is refused for another reason: it comes too early.
            while True:
                with pytest.raises(shunt.InvalidStateError) as raised:
                    moe.dispatch_send(tokens_of(0, 12), ids)
                if "another thread" in str(raised.value):
                    break
            refused.append(str(raised.value))
            os.write(awake, b"x")

        second = threading.Thread(target=other)
        second.start()
        while True:
            try:
                received = moe.dispatch_recv(sent)
                break
            except shunt.InvalidStateError:
                pass  # The other thread was in its call just then.
        second.join()
        moe.combine(np.array(received.rows), weights)
        return refused

    refused = shunt.run_ranks(rank, 2)[0]
    assert refused == ["rank 0 of 2: another thread is in a call of this world; one call at a time is allowed"]


def test_a_lost_peer_is_named():
    config = config_of(deadline=20)
    ids, _ = routings(config, 1, "uniform")[0]

    def rank(world):
        moe = shunt.AllToAll(world, config)
        if world.rank == 1:
            os.kill(os.getpid(), 9)
        with pytest.raises(shunt.PeerLostError, match="rank 1") as raised:
            moe.dispatch(tokens_of(0, 12), ids)
        assert isinstance(raised.value, ConnectionError)
        return raised.value.peer

    with pytest.raises(shunt.RanksFailedError, match="rank 1 of 3: killed by signal 9") as raised:
        shunt.run_ranks(rank, 3)
    assert [one.exit_status for one in raised.value.outcomes] == [0, 137, 0]


def test_survivors_go_on_with_a_mask():
    config = config_of(on_peer_loss="mask", deadline=20)
    ids, weights = routings(config, 1, "uniform")[0]

    lost = oracle.experts_of(2, 7, 3)
    expected = oracle.combined(tokens_of(0, 12), ids, weights, lambda expert: float(expert not in lost))
    reader, writer = os.pipe()

    def rank(world):
        moe = shunt.AllToAll(world, config)
        if world.rank == 2:
            os.kill(os.getpid(), 9)
        voids = 0
        while True:
            try:
                received = moe.dispatch(tokens_of(0, 12), ids)
                out = moe.combine(np.array(received.rows), weights)
                break
            except shunt.PeerMaskedError:
                voids += 1
                assert voids == 1
        assert moe.alive == [True, True, False]
        assert voids == 1
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        os.write(writer, b"x")

    with pytest.raises(shunt.RanksFailedError) as raised:
        shunt.run_ranks(rank, 3)
    os.close(writer)
    assert [one.exit_status for one in raised.value.outcomes] == [0, 0, 137]
    # What the survivors returned is lost with the third.
    assert os.read(reader, 3) == b"xx"
    os.close(reader)
