"""One rank's dispatch, touch and combine over torch.distributed; torch_alltoall.py and torch_serve.py use it."""

import datetime
import sys
import time

STEADY = time.CLOCK_MONOTONIC
FP8 = {"float8_e4m3fn", "float8_e5m2"}
SCALE_BLOCK = 128
INNER = ("route", "count_exchange", "pack", "exchange", "unpack", "place", "combine_pack", "combine_exchange", "reduce")


def now_ns():
    return time.clock_gettime_ns(STEADY)


def element_bytes(dtype):
    return {"float32": 4, "bfloat16": 2, "float16": 2}.get(dtype, 1)


def expert_starts(experts, ranks):
    """First expert of every rank, and `experts` at the end: consecutive blocks, as even as possible."""
    base, extra = divmod(experts, ranks)
    return [r * base + min(r, extra) for r in range(ranks)] + [experts]


def token_share(tokens, dp_size, member):
    base, extra = divmod(tokens, dp_size)
    begin = member * base + min(member, extra)
    return begin, begin + base + (1 if member < extra else 0)


def import_torch():
    try:
        import torch
        import torch.distributed
    except ImportError as error:
        sys.exit(f"torch_alltoall.py: {sys.executable} cannot import torch.distributed: {error}")
    torch.set_num_threads(1)
    return torch


class Exchange:
    """One rank's step. `case` says sizes: ranks, rank, dp_size, experts, topk, hidden, in_dtype, out_dtype, tokens
    (of its group), arriving (rows that come to this rank), device. `buffers` holds tensors made by the caller:
    x, ids, weights and, where tokens are fp8, scales; rows, row_scales and combined receive the results."""

    def __init__(self, torch, case, buffers):
        self.torch, self.dist, self.case = torch, torch.distributed, case
        ranks, rank, dp = case["ranks"], case["rank"], case["dp_size"]
        self.device = case["device"]
        self.fp8 = case["in_dtype"] in FP8
        self.dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        in_type = torch.uint8 if self.fp8 else self.dtypes[case["in_dtype"]]
        out_type = self.dtypes[case["out_dtype"]]
        hidden, topk, tokens, arriving = case["hidden"], case["topk"], case["tokens"], case["arriving"]
        self.num_scales = (hidden + SCALE_BLOCK - 1) // SCALE_BLOCK if self.fp8 else 0
        self.begin, self.end = token_share(tokens, dp, rank % dp)
        self.starts = expert_starts(case["experts"], ranks)
        self.per_rank = [b - a for a, b in zip(self.starts, self.starts[1:])]
        self.local = self.per_rank[rank]
        self.group = list(range(rank // dp * dp, rank // dp * dp + dp))

        def make(*shape, dtype):
            return torch.empty(shape, dtype=dtype, device=self.device)

        def on_device(name):
            there = buffers.get(name)
            return there.to(self.device) if there is not None else None

        self.buffers = buffers
        self.x, self.ids, self.weights = on_device("x"), on_device("ids").long(), on_device("weights")
        self.scales = on_device("scales")
        self.rows, self.combined = on_device("rows"), on_device("combined")
        self.row_scales = on_device("row_scales")
        # Everything is allocated once: a fresh allocation of this size costs page faults every time.
        share = (self.end - self.begin) * topk
        self.send = make(share, hidden, dtype=in_type)
        self.recv = make(arriving, hidden, dtype=in_type)
        self.send_scales = make(share, self.num_scales, dtype=torch.float32)
        self.recv_scales = make(arriving, self.num_scales, dtype=torch.float32)
        self.recv_counts = make(ranks * self.local, dtype=torch.int64)
        self.outputs = make(arriving, hidden, dtype=out_type)
        self.back = make(arriving * dp, hidden, dtype=out_type)
        self.results = make(tokens * topk, hidden, dtype=out_type)
        self.gathered = make(tokens * topk, hidden, dtype=out_type)
        self.wide = make(tokens * topk, hidden, dtype=torch.float32)
        self.sums = make(tokens, hidden, dtype=torch.float32)
        owners = [r for r in range(ranks) for _ in range(self.per_rank[r])]
        self.owner_of = torch.tensor(owners, dtype=torch.int64, device=self.device)
        first = self.starts[rank]
        factors = [(0.5, 1.0, 2.0)[(first + e) % 3] for e in range(self.local)]
        self.factors = torch.tensor(factors, dtype=torch.float32, device=self.device)
        members = [m for m in range(dp) for _ in range(*token_share(tokens, dp, m))]
        self.member_of = torch.tensor(members, dtype=torch.int64, device=self.device)
        self.count = 0
        self.inner = dict.fromkeys(INNER, -1)

    def sync(self):
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def mark(self, name, since):
        self.sync()
        now = now_ns()
        self.inner[name] = now - since
        return now

    def rows_to_ranks(self, out, send, out_rows, in_rows):
        """all_to_all_single of rows, as bytes: gloo of PyTorch 1.13 knows no bfloat16."""
        if out.shape[1] == 0:
            return
        view = self.torch.uint8
        self.dist.all_to_all_single(out.view(view), send.view(view), out_rows, in_rows)

    def dispatch(self):
        torch, ranks, topk = self.torch, self.case["ranks"], self.case["topk"]
        at = now_ns()
        flat = self.ids[self.begin:self.end].reshape(-1)
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat + 1, minlength=self.case["experts"] + 1)  # -1 skips a choice
        skipped = int(counts[0])
        order, counts = order[skipped:], counts[1:]
        at = self.mark("route", at)
        self.dist.all_to_all_single(self.recv_counts, counts, [self.local] * ranks, self.per_rank)
        at = self.mark("count_exchange", at)

        tokens = torch.div(order, topk, rounding_mode="floor") + self.begin
        send = torch.index_select(self.x, 0, tokens, out=self.send[:len(order)])
        per_owner = torch.zeros(ranks, dtype=torch.int64, device=self.device).index_add_(0, self.owner_of, counts)
        self.send_rows = per_owner.tolist()
        arrived = self.recv_counts.view(ranks, self.local)
        self.recv_rows = arrived.sum(1).tolist()
        self.count = count = sum(self.recv_rows)
        if self.fp8:
            send_scales = torch.index_select(self.scales, 0, tokens, out=self.send_scales[:len(order)])
        at = self.mark("pack", at)
        self.rows_to_ranks(self.recv[:count], send, self.recv_rows, self.send_rows)
        if self.fp8:
            self.rows_to_ranks(self.recv_scales[:count], send_scales, self.recv_rows, self.send_rows)
        at = self.mark("exchange", at)

        # Rows came by (source, expert); they are wanted by (expert, source).
        pieces = arrived.reshape(-1)
        came = (pieces.cumsum(0) - pieces).view(ranks, self.local).t().reshape(-1)
        lengths = arrived.t().reshape(-1)
        wanted = lengths.cumsum(0) - lengths
        self.place = torch.repeat_interleave(came - wanted, lengths) + torch.arange(count, device=self.device)
        torch.index_select(self.recv[:count], 0, self.place, out=self.rows[:count])
        if self.fp8:
            torch.index_select(self.recv_scales[:count], 0, self.place, out=self.row_scales[:count])
        self.per_expert = arrived.sum(0)
        self.order = order
        self.mark("unpack", at)

    def widen(self, rows):
        """fp8 bytes as float32: their bits are those of a half, shifted; e4m3 with another exponent bias."""
        torch = self.torch
        bits = rows.to(torch.int16)
        if self.case["in_dtype"] == "float8_e5m2":
            return bits.bitwise_left_shift_(8).view(torch.half).float()
        sign = bits.bitwise_and(0x80).bitwise_left_shift_(8)
        return bits.bitwise_and_(0x7F).bitwise_left_shift_(7).bitwise_or_(sign).view(torch.half).float().mul_(256.0)

    def touch(self):
        torch, count = self.torch, self.count
        factors = torch.repeat_interleave(self.factors, self.per_expert).unsqueeze(1)
        rows, out = self.rows[:count], self.outputs[:count]
        if self.fp8:
            scales = (self.row_scales[:count] * factors).repeat_interleave(SCALE_BLOCK, 1)[:, :self.case["hidden"]]
            out.copy_(self.widen(rows).mul_(scales))
        elif rows.dtype == out.dtype:
            torch.mul(rows, factors.to(rows.dtype), out=out)  # exact: factors are powers of two
        else:
            out.copy_(rows * factors)
        self.sync()

    def combine(self):
        torch, dp, topk, count = self.torch, self.case["dp_size"], self.case["topk"], self.count
        at = now_ns()
        came = torch.empty_like(self.place)
        came[self.place] = torch.arange(count, device=self.device)
        send_rows, recv_rows = self.recv_rows, self.send_rows
        if dp > 1:  # every rank of a group gets what all of them sent
            pieces = came.split(self.recv_rows)
            groups = [torch.cat(pieces[g:g + dp]) for g in range(0, len(pieces), dp)]
            came = torch.cat([one for one in groups for _ in range(dp)])
            send_rows = [len(one) for one in groups for _ in range(dp)]
        back = torch.index_select(self.outputs[:count], 0, came, out=self.back[:len(came)])

        flat = self.ids.reshape(-1)
        order = self.order
        if dp > 1:  # results come by (owner, member of the group, expert)
            experts = self.case["experts"]
            owner = self.owner_of[flat.clamp(min=0)]
            key = (owner * dp + self.member_of.repeat_interleave(topk)) * experts + flat
            key[flat < 0] = -1
            order = torch.argsort(key, stable=True)[int((flat < 0).sum()):]
            recv_rows = torch.bincount(owner[order], minlength=self.case["ranks"]).tolist()
        at = self.mark("combine_pack", at)
        self.rows_to_ranks(self.results[:len(order)], back, recv_rows, send_rows)
        at = self.mark("combine_exchange", at)
        self.reduce(flat, order)
        self.mark("reduce", at)

    def reduce(self, flat, order):
        torch, topk = self.torch, self.case["topk"]
        if len(order) == 0:
            self.combined.zero_()
            return
        place = torch.zeros_like(flat)
        place[order] = torch.arange(len(order), device=self.device)
        weights = self.weights
        if len(order) < len(flat):
            weights = weights.masked_fill(self.ids < 0, 0)
        torch.index_select(self.results[:len(order)], 0, place, out=self.gathered)
        self.wide.copy_(self.gathered).mul_(weights.reshape(-1, 1))
        torch.sum(self.wide.view(-1, topk, self.wide.shape[1]), 1, out=self.sums)
        self.combined.copy_(self.sums)

    def poison(self):
        """Overwrites what earlier steps left, so that only new bytes can pass a check."""
        for one in (self.send, self.recv, self.outputs, self.back, self.results, self.gathered, self.wide,
                    self.rows, self.combined, self.send_scales, self.recv_scales, self.row_scales):
            if one is not None and one.numel() > 0:
                one.view(self.torch.uint8).fill_(0xFF)
        self.recv_counts.fill_(0)

    def hand_over(self):
        """Copies results off the device, outside the times."""
        if self.device == "cpu":
            return
        self.buffers["rows"][:self.count].copy_(self.rows[:self.count])
        if self.fp8:
            self.buffers["row_scales"][:self.count].copy_(self.row_scales[:self.count])
        self.buffers["combined"].copy_(self.combined)


def join(torch, case, store):
    backend = "gloo" if case["device"] == "cpu" else "nccl"
    if backend == "nccl":
        torch.cuda.set_device(case["local_rank"] % torch.cuda.device_count())
    torch.distributed.init_process_group(backend, store=store, rank=case["rank"], world_size=case["ranks"],
                                         timeout=datetime.timedelta(seconds=case["timeout_s"]))
