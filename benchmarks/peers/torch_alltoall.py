#!/usr/bin/env python3
"""Expert-parallel dispatch and combine the usual PyTorch way: torch.distributed.all_to_all_single.

Tokens are sorted by expert (argsort, index_select), counts and rows travel by all_to_all_single, rows are put
expert by expert, "experts" scale them, results go back the same way, and a weighted sum in float32 ends the step.
gloo on the CPU, NCCL with --device cuda.

On its own, started on every rank with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT (as torchrun sets them), or
with --ranks N, which starts N ranks on this machine:

  torch_alltoall.py --ranks 2 --trace data/traces/example.jsonl --hidden 2048
  torchrun --nproc-per-node 8 torch_alltoall.py --experts 256 --topk 8 --hidden 7168 --tokens 128 --device cuda

It prints JSON Lines: a context, then a result per phase. Every payload is checked before and after the timing; the
exit status is 1 where one was wrong. `shunt bench alltoall --methods shunt,torch` runs the same code interleaved with
its own methods and checks it by its own oracle; it starts this file with --serve.
"""

import argparse
import datetime
import json
import os
import socket
import sys

from torch_exchange import (FP8, SCALE_BLOCK, Exchange, element_bytes, expert_starts, import_torch, join, now_ns)


class Input:
    """Tokens and expert choices of every group, the same on every rank."""

    def __init__(self, torch, args, ranks):
        self.torch, self.args = torch, args
        self.groups = ranks // args.dp_size
        self.trace = read_trace(args.trace) if args.trace else None
        if self.trace:
            for name, given in (("experts", args.experts), ("topk", args.topk)):
                if given not in (None, self.trace[name]):
                    sys.exit(f"torch_alltoall.py: --{name} is {given}; {args.trace} has {self.trace[name]}")
            self.experts, self.topk = self.trace["experts"], self.trace["topk"]
        else:
            self.experts, self.topk = args.experts or 64, args.topk or 6
        if not 1 <= self.topk <= self.experts:
            sys.exit(f"torch_alltoall.py: --topk is {self.topk}; allowed: 1 to the number of experts, {self.experts}")
        self.choices = [self.choose(g) for g in range(self.groups)]

    def choose(self, group):
        """Expert ids and weights of a group, [T, K]."""
        torch, tokens = self.torch, self.args.tokens
        if self.trace is None:
            random = torch.Generator().manual_seed(self.args.seed * 1000003 + group)
            ids = torch.rand(tokens, self.experts, generator=random).topk(self.topk).indices.int()
            weights = torch.rand(tokens, self.topk, generator=random) + 0.25
            return ids, weights / weights.sum(1, keepdim=True)
        # docs/formats.md: group g repeats what group g mod G' chose; later rounds of groups begin T tokens further.
        lines = self.trace["groups"][group % len(self.trace["groups"])]
        if not lines:
            return torch.empty(0, self.topk, dtype=torch.int32), torch.empty(0, self.topk)
        begin = group // len(self.trace["groups"]) * tokens
        wanted = [lines[(begin + t) % len(lines)] for t in range(tokens)]
        ids = torch.tensor([ids for ids, _ in wanted], dtype=torch.int32).view(tokens, self.topk)
        weights = torch.tensor([weights for _, weights in wanted], dtype=torch.float32).view(tokens, self.topk)
        return ids, weights.masked_fill(ids < 0, 0)

    def tokens(self, group):
        """Rows [T, H] of a group and, for fp8, scales."""
        torch, args = self.torch, self.args
        shape = (len(self.choices[group][0]), args.hidden)
        random = torch.Generator().manual_seed(args.seed * 1000003 + (1 << 40) + group)
        if args.in_dtype in FP8:
            keep = 0xF7 if args.in_dtype == "float8_e4m3fn" else 0xBF  # neither NaN nor infinity
            rows = torch.randint(0, 256, shape, generator=random).bitwise_and_(keep).to(torch.uint8)
            blocks = (args.hidden + SCALE_BLOCK - 1) // SCALE_BLOCK
            return rows, torch.rand(shape[0], blocks, generator=random) + 0.5
        rows = torch.randint(-(1 << 15), 1 << 15, shape, generator=random).float() / (1 << 15)
        types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        return rows.to(types[args.in_dtype]), None


def read_trace(path):
    """A routing trace as docs/formats.md has it: per group, the (ids, weights) of its tokens in order."""
    def refuse(line, text):
        sys.exit(f"{path}:{line}: {text}")

    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError as error:
        sys.exit(f"torch_alltoall.py: --trace: {error}")
    records = []
    for at, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            refuse(at, f"not JSON: {error}")
    if not records or records[0].get("record") != "trace" or records[0].get("format") != 1:
        refuse(1, 'expected {"record":"trace","format":1,...}, the head of a routing trace')
    head = records[0]
    groups = [[] for _ in range(head["groups"])]
    if len(records) != 1 + head["groups"] * head["steps"]:
        refuse(len(records), f"{len(records) - 1} lines follow the head; steps x groups is {head['groups'] * head['steps']}")
    for at, record in enumerate(records[1:]):
        where = {"step": at // head["groups"], "group": at % head["groups"]}
        if {name: record.get(name) for name in where} != where:
            refuse(at + 2, f"expected step {where['step']}, group {where['group']}")
        ids, weights = record.get("ids", []), record.get("weights", [])
        if len(ids) != len(weights):
            refuse(at + 2, f"{len(ids)} tokens in ids, {len(weights)} in weights")
        for one, shares in zip(ids, weights):
            chosen = [e for e in one if e >= 0]
            if len(one) != head["topk"] or len(shares) != head["topk"]:
                refuse(at + 2, f"a token has {len(one)} ids and {len(shares)} weights; topk is {head['topk']}")
            if any(not -1 <= e < head["experts"] for e in one) or len(set(chosen)) != len(chosen):
                refuse(at + 2, f"ids {one}; allowed: distinct, from -1 to {head['experts'] - 1}")
            groups[record["group"]].append((one, shares))
    return {"experts": head["experts"], "topk": head["topk"], "groups": groups}


def check_step(torch, exchange, source, case):
    """What one rank got, against the tokens themselves and against sums in double; empty where all is right."""
    rank, dp = case["rank"], case["dp_size"]
    first, last = exchange.starts[rank], exchange.starts[rank + 1]
    got, at = exchange.buffers["rows"], 0
    chosen = [ids for ids, _ in source.choices]
    begins = {}
    for expert in range(first, last):
        for group, ids in enumerate(chosen):
            begins[expert, group] = at
            at += int((ids == expert).sum())
    if at != exchange.count:
        return f"rank {rank} got {exchange.count} rows; expected {at}"
    for group, ids in enumerate(chosen):
        rows, scales = source.tokens(group)
        for expert in range(first, last):
            tokens = (ids == expert).any(1).nonzero().view(-1)
            begin = begins[expert, group]
            mine = slice(begin, begin + len(tokens))
            if not torch.equal(got[mine].view(torch.uint8), rows[tokens].view(torch.uint8)):
                return f"rank {rank}: rows of expert {expert}, group {group} differ from their tokens"
            if scales is not None and not torch.equal(exchange.buffers["row_scales"][mine], scales[tokens]):
                return f"rank {rank}: rows of expert {expert}, group {group} have other scales than their tokens"
    group = rank // dp
    ids, weights = source.choices[group]
    rows, scales = source.tokens(group)
    x = exchange.widen(rows.clone()).double() if scales is not None else rows.double()
    if scales is not None:
        x *= scales.double().repeat_interleave(SCALE_BLOCK, 1)[:, :x.shape[1]]
    factors = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)[(ids % 3).long()] * (ids >= 0)
    shares = weights.double() * factors
    expected = x * shares.sum(1, keepdim=True)
    # Expert rows and the result are rounded once each, the float32 sum once per expert.
    roundoff, smallest = {"float32": (2.0**-24, 2.0**-150), "float16": (2.0**-11, 2.0**-25)}.get(
        case["out_dtype"], (2.0**-8, 2.0**-134))
    size = shares.abs().sum(1, keepdim=True)
    allowed = x.abs() * size * (2.1 * roundoff + (case["topk"] + 2) * 2.0**-24) + smallest * (2 + size)
    wrong = ~((exchange.buffers["combined"].double() - expected).abs() <= allowed)
    if wrong.any():
        token, element = wrong.nonzero()[0].tolist()
        return f"rank {rank}, token {token}, element {element}: the combined value is wrong"
    return ""


def interface_towards(address):
    """Name of the interface that leads to `address`, for gloo and NCCL; None where that cannot be told."""
    import fcntl
    import struct
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 1))
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    found = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                except OSError:
                    continue
                if socket.inet_ntoa(found[20:24]) == own or own.startswith("127.") and name == "lo":
                    return name
        except OSError:
            pass
    return None


def median(values):
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def report(torch, case, args, source, stamps, wrong, same_host):
    """Rank 0 prints what all ranks measured; stamps [R, iterations, phases, (begin, end)]."""
    if same_host:  # one clock: from the first begin to the last end
        spans = stamps[..., 1].max(0).values - stamps[..., 0].min(0).values
    else:
        spans = (stamps[..., 1] - stamps[..., 0]).max(0).values
    us = (spans.double() / 1e3).tolist()
    rows = sum(int((ids >= 0).sum()) for ids, _ in source.choices)
    scale_bytes = 4 * ((args.hidden + SCALE_BLOCK - 1) // SCALE_BLOCK) if args.in_dtype in FP8 else 0
    row = args.hidden * element_bytes(args.in_dtype) + scale_bytes
    result = args.hidden * element_bytes(args.out_dtype)
    sizes = {"dispatch": rows * row, "touch": rows * (row + result), "combine": rows * args.dp_size * result}
    sizes["total"] = sizes["dispatch"] + sizes["combine"]
    print(json.dumps({
        "record": "context", "format": 1, "program": "torch_alltoall.py", "torch": torch.__version__,
        "backend": torch.distributed.get_backend(), "device": case["device"], "host": socket.gethostname(),
        "python": sys.version.split()[0], "command": " ".join(sys.argv), "warmup_iterations": args.warmup,
        "time": "first begin to last end" if same_host else "slowest rank"}))
    phases = ("dispatch", "touch", "combine")
    for phase in phases + ("total",):
        times = sorted(sum(one) if phase == "total" else one[phases.index(phase)] for one in us)
        middle = median(times)
        print(json.dumps({
            "record": "result", "bench": "alltoall", "method": "torch", "phase": phase,
            "status": "failed" if wrong else "ok", "reason": wrong, "correct": not wrong, "ranks": case["ranks"],
            "dp_size": args.dp_size, "experts": source.experts, "topk": source.topk, "hidden": args.hidden,
            "tokens_per_rank": args.tokens, "in_dtype": args.in_dtype, "out_dtype": args.out_dtype,
            "routing": f"trace:{args.trace}" if args.trace else "uniform", "seed": args.seed,
            "median_us": middle, "p90_us": times[int(0.9 * (len(times) - 1))],
            "p99_us": times[int(0.99 * (len(times) - 1))], "min_us": times[0], "max_us": times[-1],
            "mean_us": sum(times) / len(times), "samples": len(times), "bytes": sizes[phase],
            "gb_per_s": sizes[phase] / middle / 1e3 if middle else 0}))
    sys.stdout.flush()


def run_alone(torch, args, rank, ranks, local_rank, store):
    source = Input(torch, args, ranks)
    group = rank // args.dp_size
    ids, weights = source.choices[group]
    starts = expert_starts(source.experts, ranks)
    case = {
        "rank": rank, "ranks": ranks, "local_rank": local_rank, "dp_size": args.dp_size, "device": args.device,
        "experts": source.experts, "topk": source.topk, "hidden": args.hidden, "tokens": len(ids),
        "in_dtype": args.in_dtype, "out_dtype": args.out_dtype, "timeout_s": args.timeout,
        "arriving": sum(int(((one >= starts[rank]) & (one < starts[rank + 1])).sum()) for one, _ in source.choices),
    }
    join(torch, case, store)
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    x, scales = source.tokens(group)
    buffers = {"x": x, "ids": ids, "weights": weights, "scales": scales,
               "rows": torch.empty(case["arriving"], args.hidden, dtype=x.dtype),
               "combined": torch.empty(len(ids), args.hidden, dtype=types[args.out_dtype])}
    if scales is not None:
        buffers["row_scales"] = torch.empty(case["arriving"], scales.shape[1])
    exchange = Exchange(torch, case, buffers)
    device_ids = [torch.cuda.current_device()] if args.device == "cuda" else None

    def step(stamps):
        for at, phase in enumerate((exchange.dispatch, exchange.touch, exchange.combine)):
            torch.distributed.barrier(device_ids=device_ids)
            begin = now_ns()
            phase()
            if stamps is not None:
                stamps[at][0], stamps[at][1] = begin, now_ns()

    def check():
        exchange.poison()
        step(None)
        exchange.hand_over()
        found = [None] * ranks
        torch.distributed.all_gather_object(found, check_step(torch, exchange, source, case))
        return next((one for one in found if one), "")

    wrong = check()
    for _ in range(args.warmup):
        step(None)
    stamps = torch.zeros(args.iterations, 3, 2, dtype=torch.int64)
    for one in stamps:
        step(one)
    wrong = wrong or check()
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        mine = (file.read(), stamps)
    everyone = [None] * ranks
    torch.distributed.all_gather_object(everyone, mine)
    if rank == 0:
        same_host = len({boot for boot, _ in everyone}) == 1
        report(torch, case, args, source, torch.stack([one for _, one in everyone]), wrong, same_host)
        if wrong:
            print(f"torch_alltoall.py: {wrong}", file=sys.stderr)
    torch.distributed.barrier(device_ids=device_ids)
    torch.distributed.destroy_process_group()
    return 1 if wrong else 0


def parse_arguments():
    def positive(text):
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{text} is not allowed; allowed: whole numbers from 1")
        return value

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=positive, help="start this many ranks here (else RANK, WORLD_SIZE, ...)")
    parser.add_argument("--trace", metavar="FILE", help="routing trace (docs/formats.md); default: uniform choices")
    parser.add_argument("--experts", type=positive, help="over all ranks (default that of the trace, else 64)")
    parser.add_argument("--topk", type=positive, help="experts per token (default that of the trace, else 6)")
    parser.add_argument("--hidden", type=positive, default=2048, help="elements per token (default 2048)")
    parser.add_argument("--tokens", type=positive, default=128, help="per group of --dp-size ranks (default 128)")
    parser.add_argument("--dp-size", type=positive, default=1, help="consecutive ranks that hold the same tokens")
    dtypes = ["bfloat16", "float16", "float32"]
    parser.add_argument("--in-dtype", choices=dtypes + sorted(FP8), default="bfloat16")
    parser.add_argument("--out-dtype", choices=dtypes, default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cpu: gloo; cuda: NCCL")
    parser.add_argument("--warmup", type=int, default=2, help="untimed iterations (default 2)")
    parser.add_argument("--iterations", type=positive, default=20, help="timed iterations (default 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=positive, default=30, metavar="SECONDS", help="of a collective (default 30)")
    parser.add_argument("--serve", metavar="JSON", help=argparse.SUPPRESS)
    return parser, parser.parse_args()


def main():
    parser, args = parse_arguments()
    if args.serve:
        import torch_serve
        return torch_serve.serve(args.serve)
    env = os.environ
    ranks = args.ranks or int(env.get("WORLD_SIZE", "0"))
    if ranks == 0 or (not args.ranks and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= env.keys()):
        parser.error("give --ranks, or start every rank with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT")
    if ranks % args.dp_size:
        parser.error(f"--dp-size is {args.dp_size}; allowed: a divisor of the number of ranks, {ranks}")
    address = "127.0.0.1" if args.ranks else env["MASTER_ADDR"]
    interface = interface_towards(address)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if interface is not None:
            env.setdefault(name, interface)
    torch = import_torch()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch finds no CUDA device")
    timeout = datetime.timedelta(seconds=args.timeout)
    if not args.ranks:
        rank = int(env["RANK"])
        store, _, _ = next(torch.distributed.rendezvous("env://", rank, ranks, timeout=timeout))
        return run_alone(torch, args, rank, ranks, int(env.get("LOCAL_RANK", rank)), store)
    if "SHUNT_PEER_RANK" in env:
        rank = int(env["SHUNT_PEER_RANK"])
        store = torch.distributed.TCPStore(address, int(env["SHUNT_PEER_PORT"]), is_master=False, timeout=timeout)
        return run_alone(torch, args, rank, ranks, rank, store)
    import subprocess
    store = torch.distributed.TCPStore(address, 0, is_master=True, timeout=timeout)
    others = [subprocess.Popen([sys.executable, *sys.argv],
                               env=dict(env, SHUNT_PEER_RANK=str(rank), SHUNT_PEER_PORT=str(store.port)))
              for rank in range(1, ranks)]
    try:
        status = run_alone(torch, args, 0, ranks, 0, store)
        return status or max([one.wait(args.timeout) for one in others], default=0)
    finally:
        for one in others:
            if one.poll() is None:
                one.kill()
                one.wait()


if __name__ == "__main__":
    sys.exit(main())
