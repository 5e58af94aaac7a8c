"""The part of torch_alltoall.py that works for a rank of `shunt bench alltoall`, as its method `torch`."""

import datetime
import json
import mmap
import os
import sys
import threading
import traceback

from torch_exchange import FP8, INNER, SCALE_BLOCK, Exchange, import_torch, join, now_ns

# Words of the shared header, 8 bytes each; src/bench/methods/torch_peer.cpp has the other end. LISTEN: rank 0 opens the
# store and says its port. JOIN: all meet. POISON comes outside of blocks, the phases inside.
COMMAND, PORT = 0, 1  # written by the rank
DONE, STATUS, BEGIN, END, COUNT, OWN_PORT, INNER_AT = 8, 9, 10, 11, 12, 13, 16  # written here
LISTEN, JOIN, BLOCK, DISPATCH, TOUCH, COMBINE, REST, POISON = range(1, 9)
OK, FAILED, LOST_PEER = 0, 1, 2
MEMORY = 3


def blames_peer(error):
    text = str(error).lower()
    return any(sign in text for sign in ("closed by peer", "reset by peer", "timed out", "timeout", "broken pipe",
                                         "connection refused", "connection reset"))


class Served:
    """The end in Python of the method `torch`: does what the command word in shared memory says. Sleeps in a read of
    standard input, except between BLOCK and REST, when it polls the word so that the next phase begins at once."""

    def __init__(self, case):
        self.case = case
        self.memory = mmap.mmap(MEMORY, 0)
        self.words = memoryview(self.memory).cast("Q")
        self.lock = threading.Lock()
        self.store = self.exchange = None

    def fence(self):
        """Orders what this process reads and writes here against the words, on every architecture."""
        self.lock.acquire()
        self.lock.release()

    def buffer(self, torch, name, dtype, *shape):
        size = 1
        for n in shape:
            size *= n
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.memory, dtype=dtype, count=size, offset=self.case["at"][name]).view(shape)

    def open_store(self, port):
        # Without a world size the constructor does not wait for the others, who have yet to learn the port.
        return self.torch.distributed.TCPStore(self.case["address"], port, is_master=self.case["rank"] == 0,
                                               timeout=datetime.timedelta(seconds=self.case["timeout_s"]))

    def listen(self):
        self.store = self.open_store(0)
        self.words[OWN_PORT] = self.store.port

    def join(self):
        torch, case = self.torch, self.case
        if self.store is None:
            self.store = self.open_store(self.words[PORT])
        join(torch, case, self.store)
        fp8 = case["in_dtype"] in FP8
        types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        in_type = torch.uint8 if fp8 else types[case["in_dtype"]]
        tokens, hidden, topk, arriving = case["tokens"], case["hidden"], case["topk"], case["arriving"]
        buffers = {
            "x": self.buffer(torch, "x", in_type, tokens, hidden),
            "ids": self.buffer(torch, "ids", torch.int32, tokens, topk),
            "weights": self.buffer(torch, "weights", torch.float32, tokens, topk),
            "rows": self.buffer(torch, "rows", in_type, arriving, hidden),
            "combined": self.buffer(torch, "combined", types[case["out_dtype"]], tokens, hidden),
        }
        if fp8:
            scales = (hidden + SCALE_BLOCK - 1) // SCALE_BLOCK
            buffers["scales"] = self.buffer(torch, "scales", torch.float32, tokens, scales)
            buffers["row_scales"] = self.buffer(torch, "row_scales", torch.float32, arriving, scales)
        self.exchange = Exchange(torch, case, buffers)

    def phase(self, code):
        exchange = self.exchange
        run = {DISPATCH: exchange.dispatch, TOUCH: exchange.touch, COMBINE: exchange.combine}[code]
        begin = now_ns()
        run()
        self.words[END] = now_ns()
        self.words[BEGIN] = begin
        exchange.hand_over()
        self.words[COUNT] = exchange.count
        if code == COMBINE:
            for i, name in enumerate(INNER):
                self.words[INNER_AT + i] = exchange.inner[name] & 0xFFFFFFFFFFFFFFFF

    def run(self):
        self.torch = import_torch()
        words, polling, seen = self.words, False, 0
        while True:
            if not polling and not os.read(0, 1):
                return  # the rank has ended or no longer needs this process
            while words[COMMAND] == seen:
                os.sched_yield()
            seen = words[COMMAND]
            self.fence()
            code = seen & 0xFF
            if code in (DISPATCH, TOUCH, COMBINE):
                self.phase(code)
            elif code == LISTEN:
                self.listen()
            elif code == JOIN:
                self.join()
            elif code == POISON:
                self.exchange.poison()
            polling = code == BLOCK or (polling and code != REST)
            self.fence()
            words[DONE] = seen


def serve(text):
    case = json.loads(text)
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = case["interface"]
    os.environ["OMP_NUM_THREADS"] = "1"
    served = Served(case)
    try:
        served.run()
    except BaseException as error:  # whatever it is, the rank must learn it
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        elif error.code:
            print(error.code, file=sys.stderr)
        sys.stderr.flush()
        served.words[STATUS] = LOST_PEER if blames_peer(error) else FAILED
        served.fence()
        served.words[DONE] = served.words[COMMAND]
    # Leaves at once: nothing here needs the order of a normal end.
    os._exit(0)
