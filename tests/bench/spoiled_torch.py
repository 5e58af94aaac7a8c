"""What `torch_alltoall.py --serve` does, except that the process of rank 1 goes wrong: spoiled_torch.py HOW SCRIPT CASE."""

import os
import signal
import sys

how, script, case = sys.argv[1:]
if how == "start":
    print("no luck today", file=sys.stderr)
    sys.exit(3)
sys.path.insert(0, os.path.dirname(script))

import torch_exchange  # noqa: E402
import torch_serve  # noqa: E402

right = torch_exchange.Exchange.combine
steps = 0


def combine(self):
    global steps
    steps += 1
    spoil = self.case["rank"] == 1 and steps >= 3
    if spoil and how == "raise":
        raise RuntimeError("spoiled on purpose")
    if spoil and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if spoil and how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    right(self)
    if spoil and how == "wrong":
        self.combined[0].neg_()


torch_exchange.Exchange.combine = combine
torch_serve.serve(case)
