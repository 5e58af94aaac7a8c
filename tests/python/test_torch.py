"""The same on tensors of PyTorch."""

from __future__ import annotations

import ctypes

import numpy as np
import oracle
import pytest

import shunt

torch = pytest.importorskip("torch")
# What PyTorch imports when it is first used is imported before ranks are forked, not by each of them.
torch.testing.assert_close(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_in_and_out(dtype):
    kind = getattr(torch, dtype)
    config = shunt.Config(
        max_tokens=9, num_experts=5, top_k=2, hidden=24, token_dtype=kind, expert_dtype=kind, out_dtype=kind
    )
    routes = [shunt.route("uniform", tokens=9, experts=5, top_k=2, groups=3, group=g) for g in range(3)]

    def rank(world):
        torch.set_num_threads(1)
        moe = shunt.AllToAll(world, config, arrays="torch")
        ids, weights = (torch.from_numpy(one) for one in routes[world.rank])
        torch.manual_seed(world.rank)
        tokens = torch.randn(9, 24).to(kind).requires_grad_(True)
        for given in (ids, ids.long()):
            received = moe.dispatch(tokens, given)
            assert received.rows.dtype == kind
            assert received.counts.dtype == torch.int64
            assert received.starts.tolist()[-1] == len(received)
            results = received.rows * 1.5
            out = moe.combine(results, weights)
            assert out.dtype == kind
            expected = oracle.combined(
                (tokens.detach().float() * 1.5).to(kind).double().numpy(), ids.numpy(), weights.numpy(), lambda _: 1.0
            )
            torch.testing.assert_close(out.double(), torch.from_numpy(expected), rtol=2e-2, atol=2e-2)
        moe.token_buffer.copy_(tokens.detach())
        received = moe.dispatch(moe.token_buffer, ids)
        moe.expert_output[: len(received)].copy_(received.rows)
        before = moe.byte_counters
        moe.combine(None, weights)
        assert moe.byte_counters["staged_outputs"] == before["staged_outputs"]
        # A tensor keeps the memory that it shows.
        view = moe.token_buffer
        moe.close()
        del moe, received
        return bool(torch.equal(view, tokens.detach()))

    assert shunt.run_ranks(rank, 3) == [True] * 3


def test_tensors_that_are_no_plain_ones():
    """Parameters, other subclasses, slices with rows apart, tensors that require gradients: read where they lie."""

    class Own(torch.Tensor):
        pass

    kind = {"token_dtype": "float32", "expert_dtype": "float32", "out_dtype": "float32"}
    config = shunt.Config(max_tokens=3, num_experts=2, top_k=1, hidden=8, **kind)
    ids = torch.tensor([[0], [1], [0]])
    wide = torch.arange(60.0).reshape(3, 20)
    given = [
        wide[:, 4:12],
        torch.nn.Parameter(wide[:, :8].clone()),
        wide[:, 2:10].clone().requires_grad_(True),
        wide[:, 3:11].clone().as_subclass(Own),
    ]
    with shunt.World.single() as world:
        moe = shunt.AllToAll(world, config, arrays="torch")
        for tokens in given:
            received = moe.dispatch(tokens, ids)
            assert torch.equal(received.rows, tokens.detach()[[0, 2, 1]])
            out = moe.combine(received.rows, torch.ones(3, 1))
            assert torch.equal(out, tokens.detach())
        with pytest.raises(shunt.InvalidArgumentError, match="side by side"):
            moe.dispatch(wide.t()[:8].t().contiguous().t().contiguous().t(), ids)


class Elsewhere:
    """A tensor in host memory that says that it lies on a GPU."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **_):
        capsule = torch.utils.dlpack.to_dlpack(self.tensor)
        address = ctypes.pythonapi.PyCapsule_GetPointer
        address.restype = ctypes.c_void_p
        address.argtypes = [ctypes.py_object, ctypes.c_char_p]
        # DLTensor: the data's address, then the type of its device; 2 is CUDA.
        ctypes.c_int32.from_address(address(capsule, b"dltensor") + 8).value = 2
        return capsule

    def __dlpack_device__(self):
        return 2, 0


def test_a_tensor_of_another_type_or_elsewhere_is_refused():
    config = shunt.Config(max_tokens=2, num_experts=2, top_k=1, hidden=8)
    with shunt.World.single() as world:
        moe = shunt.AllToAll(world, config, arrays="torch")
        ids = torch.zeros(2, 1, dtype=torch.int32)
        with pytest.raises(
            shunt.InvalidArgumentError, match="tokens has elements of float64; the config says bfloat16"
        ):
            moe.dispatch(torch.zeros(2, 8, dtype=torch.float64), ids)
        with pytest.raises(shunt.InvalidArgumentError, match="float32 is needed"):
            received = moe.dispatch(torch.zeros(2, 8, dtype=torch.bfloat16), ids)
            moe.combine(received.rows, torch.zeros(2, 1, dtype=torch.float64))
        lazy = torch.ones(2, 8, dtype=torch.complex64).conj().imag
        assert lazy.is_neg()
        with pytest.raises(shunt.InvalidArgumentError, match="tokens is a tensor with the negative bit set"):
            moe.dispatch(lazy, ids)
        with pytest.raises(shunt.InvalidArgumentError, match="tokens is on a device of DLPack type 2"):
            moe.dispatch(Elsewhere(torch.zeros(2, 8, dtype=torch.bfloat16)), ids)


def test_fp8_tensors_where_pytorch_has_them():
    if not hasattr(torch, "float8_e4m3fn"):
        pytest.skip(f"PyTorch {torch.__version__} has no fp8")
    config = shunt.Config(
        max_tokens=2, num_experts=2, top_k=1, hidden=8, token_dtype=torch.float8_e4m3fn, expert_dtype=torch.float32,
        out_dtype=torch.float32,
    )  # fmt: skip
    with shunt.World.single() as world:
        moe = shunt.AllToAll(world, config, arrays="torch")
        tokens = torch.arange(16.0).reshape(2, 8).to(torch.float8_e4m3fn)
        received = moe.dispatch(tokens, torch.tensor([[1], [0]]))
        assert received.rows.dtype == torch.float8_e4m3fn
        assert torch.equal(received.rows.float(), tokens.float().flip(0))
        out = moe.combine(received.rows.float(), torch.ones(2, 1))
        assert torch.equal(out, tokens.float())


def test_mixed_with_numpy():
    config = shunt.Config(
        max_tokens=2,
        num_experts=2,
        top_k=1,
        hidden=8,
        token_dtype="float32",
        expert_dtype="float32",
        out_dtype="float32",
    )
    with shunt.World.single() as world:
        moe = shunt.AllToAll(world, config, arrays="torch")
        received = moe.dispatch(np.ones((2, 8), np.float32), np.array([[0], [1]]))
        out = moe.combine(received.rows, torch.full((2, 1), 3.0))
        assert torch.equal(out, torch.full((2, 8), 3.0))
