"""A mixture-of-experts layer in PyTorch, trained on 4 ranks of this machine: python examples/python/moe_layer.py

Each rank has its own tokens and its own experts. Gradients of what all ranks hold (the gate) are summed; those of
experts are complete where the experts are.
"""

import torch

import shunt
from shunt.torch import Exchange

HIDDEN, EXPERTS, TOP_K, TOKENS, STEPS = 32, 8, 2, 64, 40


class MoeLayer(torch.nn.Module):
    def __init__(self, world):
        super().__init__()
        kinds = {"token_dtype": "float32", "expert_dtype": "float32", "out_dtype": "float32"}
        self.exchange = Exchange(
            world, shunt.Config(max_tokens=TOKENS, num_experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN, **kinds)
        )
        torch.manual_seed(0)  # The gate is the same on every rank
        self.gate = torch.nn.Linear(HIDDEN, EXPERTS)
        torch.manual_seed(1 + world.rank)
        self.experts = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(HIDDEN, 64), torch.nn.GELU(), torch.nn.Linear(64, HIDDEN))
            for _ in range(self.exchange.num_local_experts)
        )

    def forward(self, tokens):
        weights, ids = torch.topk(self.gate(tokens), TOP_K)
        rows, starts, _ = self.exchange.dispatch(tokens, ids)
        sizes = starts.diff().tolist()
        parts = torch.split(rows, [*sizes, len(rows) - sum(sizes)])
        results = [expert(part) for expert, part in zip(self.experts, parts, strict=False)]
        return self.exchange.combine(torch.cat([*results, parts[-1]]), ids, torch.softmax(weights, 1))


def rank(world):
    torch.set_num_threads(1)
    layer = MoeLayer(world)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    torch.manual_seed(100 + world.rank)
    tokens = torch.randn(TOKENS, HIDDEN)
    target = torch.sin(2 * tokens).roll(1, dims=1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = ((layer(tokens) - target) ** 2).mean() / world.size
        loss.backward()
        for parameter in layer.gate.parameters():
            parameter.grad = sum(world.allgather_object(parameter.grad))
        optimizer.step()
        losses.append(sum(world.allgather_object(loss.item())))
    return losses


if __name__ == "__main__":
    print(f"loss: {[round(one, 3) for one in shunt.run_ranks(rank, 4)[0][::8]]}")
