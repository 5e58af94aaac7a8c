"""Dispatch and combine on NumPy arrays, 4 ranks of this machine: python examples/python/step.py"""

import numpy as np

import shunt


def rank(world: shunt.World) -> float:
    kinds = {"token_dtype": "float32", "expert_dtype": "float32", "out_dtype": "float32"}
    config = shunt.Config(max_tokens=16, num_experts=8, top_k=2, hidden=64, **kinds)
    moe = shunt.AllToAll(world, config)
    ids, weights = shunt.route("uniform", tokens=16, experts=8, top_k=2, groups=world.size, group=world.rank)
    tokens = np.full((16, 64), 1 + world.rank, np.float32)
    received = moe.dispatch(tokens, ids)  # the rows of my experts, expert by expert
    out = moe.combine(2 * received.rows, weights)  # the experts double; their weights sum to 1
    assert np.allclose(out, 2 * tokens)
    return float(out.mean())


if __name__ == "__main__":
    print(shunt.run_ranks(rank, 4))
