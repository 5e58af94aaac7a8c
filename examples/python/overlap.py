"""Work between a send and its recv hides behind the peers: python examples/python/overlap.py"""

import time

import numpy as np

import shunt


def shared_expert(tokens, matrix):
    """What every token goes through, wherever it is: nobody has to be waited for."""
    return np.tanh(tokens @ matrix)


def rank(world):
    kinds = {"token_dtype": "float32", "expert_dtype": "float32", "out_dtype": "float32"}
    moe = shunt.AllToAll(world, shunt.Config(max_tokens=64, num_experts=16, top_k=4, hidden=512, **kinds))
    ids, weights = shunt.route("uniform", tokens=64, experts=16, top_k=4, groups=world.size, group=world.rank)
    random = np.random.default_rng(world.rank)
    tokens, matrix = (random.standard_normal(shape, np.float32) for shape in ((64, 512), (512, 512)))
    for _ in range(10):
        begin = time.perf_counter()
        sent = moe.dispatch_send(tokens, ids)
        shared = shared_expert(tokens, matrix)  # while the tokens are on their way
        received = moe.dispatch_recv(sent)
        np.multiply(received.rows, 0.5, out=moe.expert_output[: len(received)])  # the experts, in place
        answer = moe.combine_send()
        shared += tokens  # while the results are on their way
        out = shared.copy()
        moe.combine_recv(answer, weights, out, accumulate=True)  # the sum begins at what is there
        spent = time.perf_counter() - begin
    assert np.allclose(out, shared + 0.5 * tokens, atol=1e-4)
    return spent


if __name__ == "__main__":
    print(f"last step of each rank, ms: {[round(1000 * one, 2) for one in shunt.run_ranks(rank, 2)]}")
