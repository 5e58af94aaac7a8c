"""Who wants which expert: synthetic routings and files of recorded ones."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import _core


class Routing(NamedTuple):
    """Expert choice of the tokens of one group."""

    ids: np.ndarray[Any, np.dtype[np.int32]]
    """[T, K] distinct within a token; -1 skips that choice."""
    weights: np.ndarray[Any, np.dtype[np.float32]]
    """[T, K]"""


def route(
    spec: str, *, tokens: int, experts: int, top_k: int, groups: int = 1, group: int = 0, seed: int = 0
) -> Routing:
    """Draws the routing of one group: a pure function of its arguments, the same on every rank and platform.

    :param spec: KIND[:ARGUMENT][+mask:SHARE][+uneven], KIND one of uniform, powerlaw:ALPHA, one,
        grouped:GROUPS,TOP_GROUPS, trace:FILE, text:FILE (docs/formats.md, "Routing specification").
    :param tokens: T of a group. :param experts: E. :param top_k: K. :param groups: G. :param group: which of them.
    """
    return Routing(*_core.route(spec, tokens, groups, experts, top_k, seed, group))


@dataclass(frozen=True)
class Trace:
    """A routing trace: for each step and group, which experts its tokens chose."""

    num_experts: int
    top_k: int
    source: str = ""
    """Where it comes from, free text."""
    steps: list[list[Routing]] = field(default_factory=list)
    """[step][group]; all steps have the same number of groups."""


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Reads a trace file (JSON Lines, docs/formats.md, "Routing trace").

    :raises FileError: with file:line:column and what was expected.
    """
    experts, top_k, source, steps = _core.read_trace(os.fspath(path))
    return Trace(experts, top_k, source, [[Routing(*group) for group in step] for step in steps])


def write_trace(path: str | os.PathLike[str], trace: Trace) -> None:
    """Writes a trace file that ``read_trace`` reads back equal. Never overwrites."""
    steps = [
        [(np.ascontiguousarray(group.ids, np.int32), np.ascontiguousarray(group.weights, np.float32)) for group in step]
        for step in trace.steps
    ]
    _core.write_trace(os.fspath(path), trace.num_experts, trace.top_k, trace.source, steps)
