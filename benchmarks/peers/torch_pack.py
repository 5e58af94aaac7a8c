#!/usr/bin/env python3
"""What PyTorch needs for the work of `shunt bench pack`: tokens into expert order, and weighted sums of the results.

Same shapes, same number of iterations, same bytes; index_select and index_add_ as PyTorch programs write it. Checks
both against plain sums, prints a table, and writes records with the keys of docs/formats.md, "Pack results".
Needs PyTorch, nothing of Shunt."""
import argparse
import json
import statistics
import sys
import time

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FLUSH_BYTES = 256 << 20


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--topk", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--tokens", default="128,4096", help="comma-separated (default 128,4096)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="of tokens and results")
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jsonl", default="", help="record file; never overwritten")
    return parser.parse_args()


class Timer:
    """Microseconds of each run: between two events on a GPU, with caches cold as `bench pack --cold`; else a clock."""

    def __init__(self, options):
        self.options = options
        self.cuda = options.device == "cuda"
        self.other = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if self.cuda else None

    def run(self, work):
        samples = []
        for i in range(-self.options.warmup, self.options.iterations):
            if self.cuda:
                self.other.fill_(i & 0x7F)
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                work()
                end.record()
                samples.append((i, begin, end))
            else:
                start = time.perf_counter()
                work()
                samples.append((i, start, time.perf_counter()))
        if self.cuda:
            torch.cuda.synchronize()
            return [begin.elapsed_time(end) * 1e3 for i, begin, end in samples if i >= 0]
        return [(end - start) * 1e6 for i, start, end in samples if i >= 0]


def measure(options, timer, tokens):
    torch.manual_seed(options.seed)
    device, dtype, top_k = options.device, DTYPES[options.dtype], options.topk
    x = torch.randn(tokens, options.hidden).to(dtype).to(device)
    ids = torch.stack([torch.randperm(options.experts)[:top_k] for _ in range(tokens)]).to(device)
    weights = torch.rand(tokens, top_k, device=device)
    state = {}

    def plan():
        state["order"] = torch.argsort(ids.flatten(), stable=True)
        state["source"] = torch.div(state["order"], top_k, rounding_mode="floor")
        state["counts"] = torch.bincount(ids.flatten(), minlength=options.experts)

    rows = torch.empty(tokens * top_k, options.hidden, dtype=dtype, device=device)

    def gather():
        torch.index_select(x, 0, state["source"], out=rows)

    def pack():
        plan()
        gather()

    total = torch.empty(tokens, options.hidden, dtype=torch.float32, device=device)

    def combine():
        total.zero_()
        scaled = rows.float() * weights.flatten()[state["order"]].unsqueeze(1)
        total.index_add_(0, state["source"], scaled)
        state["out"] = total.to(dtype)

    plan()
    gather()
    copied = torch.empty_like(rows)
    row_bytes = options.hidden * rows.element_size()
    plan_bytes = tokens * top_k * 4 * 3 + options.experts * 8
    gathered = tokens * row_bytes * (1 + top_k)
    phases = [("pack", pack, plan_bytes + gathered), ("plan", plan, plan_bytes), ("gather", gather, gathered),
              ("combine", combine, tokens * row_bytes * (1 + top_k) + tokens * top_k * 8),
              ("copy", lambda: copied.copy_(rows), 2 * tokens * top_k * row_bytes)]
    samples = {name: (timer.run(work), size) for name, work, size in phases}
    expected = x.float() * weights.sum(1, keepdim=True)
    right = bool(torch.equal(rows, x[state["source"]])) and bool(
        torch.allclose(state["out"].float(), expected, rtol=2e-2, atol=1e-2))
    return samples, right


def main():
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch_pack.py: this PyTorch finds no GPU")
    out = open(options.jsonl, "x", encoding="utf-8") if options.jsonl else None
    timer = Timer(options)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"# PyTorch {torch.__version__}, {name}; {options.experts} experts, top-{options.topk}, hidden "
          f"{options.hidden}, {options.dtype}; {options.iterations} iterations after {options.warmup} of warm-up")
    if out:
        out.write(json.dumps({"record": "context", "format": 1, "torch": torch.__version__, "device": options.device,
                              "device_description": name, "command": " ".join(sys.argv)}) + "\n")
    wrong = False
    for tokens in (int(text) for text in options.tokens.split(",")):
        results, right = measure(options, timer, tokens)
        wrong |= not right
        print(f"\n{tokens} tokens{'' if right else ': WRONG'}")
        print(f"  {'phase':<8} {'median us':>10} {'mean':>10} {'std':>10} {'p99':>10} {'GB/s':>9}")
        for phase, (us, size) in results.items():
            ordered = sorted(us)
            median, p99 = statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            deviation = statistics.stdev(us) if len(us) > 1 else 0.0
            print(f"  {phase:<8} {median:>10.2f} {statistics.mean(us):>10.2f} {deviation:>10.2f} {p99:>10.2f} "
                  f"{size / median / 1e3:>9.2f}")
            if out:
                out.write(json.dumps({
                    "record": "result", "bench": "pack", "method": "torch", "phase": phase,
                    "status": "ok" if right else "failed", "reason": "", "correct": right, "preset": "custom",
                    "experts": options.experts, "topk": options.topk, "hidden": options.hidden, "tokens": tokens,
                    "in_dtype": options.dtype, "payload": options.dtype, "out_dtype": options.dtype,
                    "routing": "uniform", "median_us": median, "mean_us": statistics.mean(us), "std_us": deviation,
                    "p99_us": p99, "min_us": ordered[0], "max_us": ordered[-1], "samples": len(us), "bytes": size,
                    "gb_per_s": size / median / 1e3}) + "\n")
    if out:
        out.close()
    sys.exit(1 if wrong else 0)


main()
