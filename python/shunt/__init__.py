"""Shunt: dispatch and combine for mixture-of-experts layers, on NumPy arrays and PyTorch tensors.

    import numpy as np
    import shunt

    def rank(world):
        config = shunt.Config(max_tokens=16, num_experts=8, top_k=2, hidden=64, token_dtype="float32",
                              expert_dtype="float32", out_dtype="float32")
        moe = shunt.AllToAll(world, config)
        ids, weights = shunt.route("uniform", tokens=16, experts=8, top_k=2, groups=world.size, group=world.rank)
        received = moe.dispatch(np.ones((16, 64), np.float32), ids)
        return moe.combine(2 * received.rows, weights)

    shunt.run_ranks(rank, 4)

docs/python.md is the guide.
"""

# isort: off
from . import _load  # noqa: F401

# isort: on
from ._all_to_all import AllToAll, CombineSent, Config, DispatchSent, Received
from ._cuda import CudaAllToAll, CudaReceived
from ._errors import (
    CheckFailedError,
    DeadlineError,
    Error,
    FileError,
    InternalError,
    InvalidArgumentError,
    InvalidStateError,
    OutOfMemoryError,
    PeerLostError,
    PeerMaskedError,
    RankOutcome,
    RanksFailedError,
    RowOverflowError,
    UnavailableError,
)
from ._launch import TransportInfo, launch, run_ranks, transports
from ._results import Results, load_results, plan, plot_results, predict
from ._routing import Routing, Trace, read_trace, route, write_trace
from ._world import World, current_world, set_current_world

__version__ = "0.1.0"

__all__ = [
    "AllToAll",
    "CheckFailedError",
    "CombineSent",
    "Config",
    "CudaAllToAll",
    "CudaReceived",
    "DeadlineError",
    "DispatchSent",
    "Error",
    "FileError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidStateError",
    "OutOfMemoryError",
    "PeerLostError",
    "PeerMaskedError",
    "RankOutcome",
    "RanksFailedError",
    "Received",
    "Results",
    "Routing",
    "RowOverflowError",
    "Trace",
    "TransportInfo",
    "UnavailableError",
    "World",
    "current_world",
    "launch",
    "load_results",
    "plan",
    "plot_results",
    "predict",
    "read_trace",
    "route",
    "run_ranks",
    "set_current_world",
    "transports",
    "write_trace",
]
