#!/usr/bin/env python3
"""Holds gradients that Shunt computed against PyTorch's autograd: autograd.py CASES.

CASES has one JSON object a line: what was differentiated, its inputs, the gradient that Shunt found, and whether that is
wrong on purpose. The forward pass
is written here once more, from docs/routing.md, in float64; only what was selected is taken from the file, since a
selection counts as constant. Ends with status 77 where there is no PyTorch, with 1 where a gradient is wrong."""
import json
import math
import sys

try:
    import torch
except ImportError as error:
    print(f"no PyTorch: {error}")
    sys.exit(77)


torch.set_num_threads(1)


def tensor(values, *shape):
    return torch.tensor(values, dtype=torch.float64).reshape(*shape)


def scores(kind, z):
    if kind == "softmax":
        return torch.softmax(z, 1)
    if kind == "sigmoid":
        return torch.sigmoid(z)
    if kind == "sqrt_softplus":
        return torch.sqrt(torch.nn.functional.softplus(z, threshold=1e9))
    return z


def gate(case, logits):
    """Sum of given coefficients times the weights of the chosen."""
    tokens, width = case["tokens"], case["width"]
    ids = torch.tensor(case["ids"]).reshape(tokens, width)
    there = ids >= 0
    z = logits / case["temperature"]
    chosen = scores(case["score"], z).gather(1, ids.clamp(min=0))
    chosen_z = z.gather(1, ids.clamp(min=0))
    rule = case["rule"]
    if rule == "softmax_chosen":
        weights = torch.softmax(chosen_z.masked_fill(~there, -math.inf), 1)
    elif rule == "score":
        weights = chosen
    elif rule == "sum":
        weights = chosen / (chosen.sum(1, keepdim=True) + 1e-20)
    elif rule == "p_norm":
        weights = chosen / chosen.pow(case["power"]).sum(1, keepdim=True).pow(1 / case["power"])
    elif rule == "relu_sum":
        positive = torch.relu(logits.gather(1, ids.clamp(min=0)))
        weights = positive / (positive.sum(1, keepdim=True) + 1e-9)
    else:
        raise ValueError(rule)
    weights = weights.masked_fill(~there, 0) * case["scale"]
    return (weights * tensor(case["grad_weights"], tokens, width)).sum()


def balance(case, logits):
    tokens, experts, k = case["tokens"], case["experts"], case["top_k"]
    length = case["sequence_tokens"] or tokens
    total = 0
    for first in range(0, tokens, length):
        z = logits[first:first + length]
        p = scores(case["score"], z)
        p = p / p.sum(1, keepdim=True)
        taken = 1 if case["form"] == "gshard" else k
        order = torch.sort(z.detach(), dim=1, descending=True, stable=True).indices[:, :taken]
        f = torch.bincount(order.flatten(), minlength=experts).double() / (length * taken)
        total = total + experts * (f * p.mean(0)).sum() * (k if case["form"] == "mixtral" else 1)
    return case["coefficient"] * total / (tokens // length)


def z_loss(case, logits):
    return case["coefficient"] * torch.logsumexp(logits, 1).square().mean()


def importance_load(case, logits):
    """Of the paper: load by the chance to be among the k largest if the noise of one expert were drawn again."""
    k, deviation = case["top_k"], case["deviation"]
    noisy = logits + tensor(case["noise"], *logits.shape)
    ordered = torch.sort(noisy, dim=1, descending=True, stable=True)
    rank = torch.empty_like(ordered.indices).scatter_(
        1, ordered.indices, torch.arange(logits.shape[1]).expand_as(logits).contiguous())
    threshold = torch.where(rank < k, ordered.values[:, k:k + 1], ordered.values[:, k - 1:k])
    load = (0.5 * torch.erfc(-(logits - threshold) / deviation / math.sqrt(2))).sum(0)
    importance = torch.softmax(logits, 1).sum(0)

    def squared_variation(x):
        return x.var(unbiased=False) / x.mean().square()

    return case["coefficient"] / 2 * (squared_variation(importance) + squared_variation(load))


def network(case, flat):
    """Sum of given coefficients times the logits; `flat` are the parameters, then the tokens."""
    arch, d, e, t, h = case["arch"], case["hidden"], case["experts"], case["tokens"], case["inner"]
    at = 0

    def take(*shape):
        nonlocal at
        size = math.prod(shape)
        part = flat[at:at + size].reshape(shape)
        at += size
        return part

    shapes = {"linear": [(d, e), (e,)], "mlp": [(d, h), (h,), (h, e), (e,)],
              "mlp-hadamard": [(d, h), (h,), (h, d), (d,), (d, e), (e,)],
              "cosine": [(d, h), (h,), (h, e), (1,)]}[arch]
    p = [take(*shape) for shape in shapes]
    x = take(t, d)
    if arch == "linear":
        logits = x @ p[0] + p[1]
    elif arch == "mlp":
        logits = torch.nn.functional.gelu(x @ p[0] + p[1]) @ p[2] + p[3]
    elif arch == "mlp-hadamard":
        m = torch.nn.functional.gelu(x @ p[0] + p[1]) @ p[2] + p[3]
        logits = (m * x) @ p[4] + p[5]
    else:
        y = torch.nn.functional.normalize(x @ p[0] + p[1], dim=1)
        logits = y @ torch.nn.functional.normalize(p[2], dim=0) * torch.exp(torch.clamp(p[3], max=math.log(100)))
    return (logits * tensor(case["grad_logits"], t, e)).sum()


KINDS = {"gate": gate, "balance": balance, "z": z_loss, "importance_load": importance_load, "network": network}


def main():
    wrong = count = 0
    with open(sys.argv[1], encoding="utf-8") as file:
        for line in file:
            case = json.loads(line)
            shape = [len(case["at"])] if case["kind"] == "network" else [case["tokens"], case["experts"]]
            at = tensor(case["at"], *shape).requires_grad_()
            KINDS[case["kind"]](case, at).backward()
            got = tensor(case["grad"], *shape)
            scale = max(at.grad.abs().max().item(), 1e-6)
            error = (at.grad - got).abs().max().item() / scale
            count += 1
            if case["wrong"]:
                wrong += error < 1e-9
                print(f"{case['name']}, wrong on purpose, is {'not ' if error < 1e-9 else ''}found")
            elif not error < 1e-9:
                wrong += 1
                print(f"{case['name']}: the gradient is off by {error:.3g} of its largest element, {scale:.3g}")
    print(f"{count} gradients, {wrong} wrong")
    sys.exit(1 if wrong or not count else 0)


main()
