"""How much a Python call of one step costs over the same step in the library: python benchmarks/python/overhead.py

One rank sends itself one small token, so that nearly nothing but calls is left; the library's own times of the step
(``record_waits``) are taken off the processor time of the Python calls, which other processes do not lengthen. Prints
microseconds for a call, the median of the blocks.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

import shunt

STEPS, BLOCKS, CALLS = 500, 20, 4


def rank(world: shunt.World, arrays: str) -> float:
    config = shunt.Config(max_tokens=1, num_experts=1, top_k=1, hidden=8, record_waits=True)
    moe = shunt.AllToAll(world, config, arrays=arrays)  # type: ignore[arg-type]
    ids: Any = np.zeros((1, 1), np.int32)
    weights: Any = np.ones((1, 1), np.float32)
    if arrays == "torch":
        import torch

        ids, weights = torch.from_numpy(ids), torch.from_numpy(weights)
    tokens = moe.token_buffer[:1]
    out = moe.token_buffer[:1] * 0
    blocks = []
    for _ in range(BLOCKS):
        begin = time.thread_time_ns()
        for _ in range(STEPS):
            moe.dispatch_recv(moe.dispatch_send(tokens, ids))
            moe.combine_recv(moe.combine_send(), weights, out)
        spent = time.thread_time_ns() - begin
        inside = STEPS * sum(moe.step_times.values())
        blocks.append((spent - inside) / STEPS / CALLS / 1000)
    return statistics.median(blocks)


def main() -> None:
    kinds = ["numpy"]
    try:
        import torch  # noqa: F401

        kinds.append("torch")
    except ImportError:
        pass
    for kind in kinds:
        with shunt.World.single() as world:
            print(f"{kind}: {rank(world, kind):.2f} us for a call")


if __name__ == "__main__":
    main()
