"""Results of the benchmarks, and what the planner prints, as plain dicts."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

from . import _core
from ._errors import FileError, InvalidArgumentError, UnavailableError


@dataclass(frozen=True)
class Results:
    """What one file of results holds."""

    context: dict[str, Any] = field(default_factory=dict)
    """What stands above the results: machine, command, seed (docs/formats.md). Of a TSV: its "comment"."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """One dict for each result, in the order of the file; None where a result has no such number."""

    def select(self, **wanted: Any) -> list[dict[str, Any]]:
        """The records whose keys have these values: ``results.select(phase="total", tokens_per_rank=128)``."""
        return [one for one in self.records if all(one.get(key) == value for key, value in wanted.items())]

    def to_pandas(self) -> Any:
        """The records as a ``pandas.DataFrame``; the context is its ``attrs``.

        :raises UnavailableError: where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UnavailableError(f"Results.to_pandas needs pandas: {error}") from None
        frame = pandas.DataFrame.from_records(self.records)
        frame.attrs.update(self.context)
        return frame


def load_results(path: str | os.PathLike[str]) -> Results:
    """Reads a file that ``shunt bench`` wrote: JSON Lines, or (by the ending .tsv) one of its tables.

    Of a table, cells that are numbers become numbers, and NA and empty ones None.

    :raises FileError: where it cannot be read or is none of them, with file:line.
    """
    name = os.fspath(path)
    try:
        with open(name, encoding="utf-8") as file:
            return _table(name, file) if name.endswith(".tsv") else _lines(name, file)
    except UnicodeDecodeError as error:
        raise FileError(f"{name}: is no text: {error}") from None
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{name}: {error.strerror or error}") from None


def _lines(name: str, file: Any) -> Results:
    context: dict[str, Any] = {}
    records = []
    for number, line in enumerate(file, 1):
        try:
            one = json.loads(line)
        except ValueError as error:
            raise FileError(f"{name}:{number}: is no JSON: {error}") from None
        kind = one.get("record") if isinstance(one, dict) else None
        if number == 1:
            if kind != "context":
                raise FileError(f'{name}:1: the first line of results has "record": "context"; this is none')
            if one.get("format") != 1:
                raise FileError(f"{name}:1: format is {one.get('format')}; 1 is allowed")
            context = one
        elif kind == "result":
            records.append(one)
    if not context:
        raise FileError(f"{name}: is empty; results begin with a line of context")
    return Results(context, records)


def _table(name: str, file: Any) -> Results:
    """Comments, among them the units, then the names, then a line for each point."""
    comments: list[str] = []
    names: list[str] = []
    records = []
    for number, line in enumerate(file, 1):
        text = line.rstrip("\n")
        if text.startswith("#"):
            comments.append(text[1:].strip())
            continue
        cells = text.split("\t")
        if not names:
            names = cells
            continue
        if len(cells) != len(names):
            raise FileError(f"{name}:{number}: has {len(cells)} cells; the first line has {len(names)} names")
        records.append({key: _cell(cell) for key, cell in zip(names, cells, strict=True)})
    if not names:
        raise FileError(f"{name}: is empty; a table begins with the names of its columns")
    return Results({"comment": " ".join(comments)} if comments else {}, records)


def _cell(text: str) -> Any:
    if text in ("", "NA"):
        return None
    if re.fullmatch(r"-?\d+", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"-?(\d+(\.\d*)?(e[-+]?\d+)?|nan|inf)", text, re.ASCII | re.IGNORECASE):
        number = float(text)
        # What is too large for a number is a name, such as a commit's.
        return number if math.isfinite(number) or text[-1] in "nfNF" else text
    return text


def plot_results(results: Results, *, phase: str = "total", axes: Any = None, **wanted: Any) -> Any:
    """A small figure of ``shunt bench alltoall --jsonl``: medians over tokens of a rank, a line for each method.

    One shape, routing and placement at a time, as for ``Results.select``: ``plot_results(results, preset="r1")``.

    :param axes: of matplotlib, drawn on; None: new ones.
    :param wanted: values of the records' keys.
    :returns: the axes.
    :raises UnavailableError: where matplotlib is not installed.
    :raises InvalidArgumentError: where no result is of that phase, or several are of one method and number of tokens.
    """
    points: dict[str, dict[int, float]] = {}
    for one in results.select(**wanted):
        if one.get("phase") != phase or one.get("median_us") is None or "tokens_per_rank" not in one:
            continue
        label = " ".join(part for part in (one["method"], one.get("variant")) if part)
        line = points.setdefault(label, {})
        if one["tokens_per_rank"] in line:
            raise InvalidArgumentError(
                f'plot_results: several results of "{label}" with {one["tokens_per_rank"]} tokens; select one preset, '
                f'routing and placement: plot_results(results, preset="{one.get("preset")}", '
                f'placement="{one.get("placement")}")'
            )
        line[one["tokens_per_rank"]] = one["median_us"]
    if not points:
        raise InvalidArgumentError(
            f'plot_results: no result of phase "{phase}" has a time{" with these values" if wanted else ""}; tables '
            "(.tsv) have no phases, the .jsonl beside them has"
        )
    if axes is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise UnavailableError(f"plot_results needs matplotlib: {error}") from None
        axes = pyplot.subplots()[1]
    for label, line in points.items():
        axes.plot(sorted(line), [line[tokens] for tokens in sorted(line)], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens of a rank")
    axes.set_ylabel(f"{phase}, median µs")
    axes.legend()
    return axes


def plan(*arguments: str | os.PathLike[str]) -> Any:
    """The answer of ``shunt plan ARGUMENTS``: ``plan("params", "r1")`` (docs/planner.md).

    The planner runs in this process. The dict is what the command prints with ``--format json``; None where it prints
    nothing. What ``plan env --lint`` finds is in the dict, whatever the command's status says.

    :raises Error: with the planner's own sentence; InvalidArgumentError where it refuses the arguments.
    """
    return _answer("plan", *arguments)


def predict(*arguments: str | os.PathLike[str]) -> Any:
    """The answer of ``shunt predict ARGUMENTS``, likewise: ``predict("cases.csv")`` (docs/cost_model.md)."""
    return _answer("predict", *arguments)


def _answer(*arguments: str | os.PathLike[str]) -> Any:
    if any(os.fspath(one).startswith("--format") for one in arguments):
        raise InvalidArgumentError(f"{arguments[0]}: --format is not for Python, which gets the answer as a dict")
    if len(arguments) == 1 and arguments[0] == "plan":
        raise InvalidArgumentError('plan: what? As in plan("params", "r1"); "shunt plan --help" lists the parts')
    text = _core.planner([*(os.fspath(one) for one in arguments), "--format", "json"])
    return json.loads(text) if text else None
