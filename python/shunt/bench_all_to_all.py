"""``python -m shunt.bench_all_to_all``: the benchmark under the name and options of pplx-kernels' own.

``--dp-size``, ``--in-dtype`` and ``--out-dtype`` as there, with the same defaults; MASTER_ADDR, MASTER_PORT,
WORLD_SIZE, WORLD_LOCAL_SIZE and NODE_RANK start the ranks of this node of several. The table goes to
data/<time>_all_to_all.tsv, in pplx-kernels' columns (docs/bench-alltoall.md, "The TSV"). It is ``shunt bench
alltoall``; every further option goes there.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime

from ._command import become_tool

_IN = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2")
_OUT = ("bfloat16", "float16", "float32")


def arguments_of(given: list[str], now: datetime) -> list[str]:
    """Those of the command ``shunt`` for those of this module, at the time ``now``."""
    parser = argparse.ArgumentParser(
        prog="python -m shunt.bench_all_to_all",
        description="Time dispatch and combine of every method, every payload checked.",
        epilog="Further options go to `shunt bench alltoall`: python -m shunt bench alltoall --help lists them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dp-size", type=int, default=1, help="consecutive ranks that hold the same tokens (default 1)"
    )
    parser.add_argument("--in-dtype", choices=_IN, default="float8_e4m3fn", help="of the tokens (default %(default)s)")
    parser.add_argument("--out-dtype", choices=_OUT, default="bfloat16", help="of the result (default %(default)s)")
    options, further = parser.parse_known_args(given)
    command = ["bench", "alltoall", "--dp-size", str(options.dp_size)]
    command += ["--in-dtype", options.in_dtype, "--out-dtype", options.out_dtype]
    if not any(one.split("=")[0] == "--pplx-tsv" for one in further):
        command += ["--pplx-tsv", f"data/{now:%Y%m%d_%H%M%S}_all_to_all.tsv"]
    return command + further


if __name__ == "__main__":
    become_tool(arguments_of(sys.argv[1:], datetime.now()))
