"""Files of results, and the command from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime

import pytest

import shunt
from shunt import bench_all_to_all
from shunt._command import has_tool

TOOL = pytest.mark.skipif(
    not has_tool(), reason="this package was built without the command, and SHUNT_TOOL names none"
)


def write_lines(path, *records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def record(tokens, median, **more):
    one = {"record": "result", "bench": "alltoall", "method": "shunt", "variant": "", "phase": "total"}
    return one | {"tokens_per_rank": tokens, "median_us": median} | more


def test_lines_become_dicts(tmp_path):
    context = {"record": "context", "format": 1, "cores": 2}
    given = [record(1, 5.0), record(2, None, method="simd/put"), record(1, 2.0, phase="dispatch")]
    results = shunt.load_results(write_lines(tmp_path / "a.jsonl", context, *given, {"record": "unknown"}))
    assert results.context == context
    assert results.records == given
    assert results.select(phase="total", tokens_per_rank=1) == given[:1]


def test_what_is_no_result_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(shunt.FileError, match=r"a\.jsonl: No such file"):
        shunt.load_results(path)
    path.write_text("")
    with pytest.raises(shunt.FileError, match="is empty"):
        shunt.load_results(path)
    path.write_text('{"record": "context", "format": 1}\n{\n')
    with pytest.raises(shunt.FileError, match=r"a\.jsonl:2: is no JSON"):
        shunt.load_results(path)
    with pytest.raises(shunt.FileError, match="format is 2; 1 is allowed"):
        shunt.load_results(write_lines(path, {"record": "context", "format": 2}))
    with pytest.raises(shunt.FileError, match='has "record": "context"'):
        shunt.load_results(write_lines(path, record(1, 2.0)))


def test_a_table_has_numbers(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("# us: microseconds\nmethod\ttok\tus\nshunt\t4\t1.5\nsimd/put\t8\tNA\n")
    results = shunt.load_results(path)
    assert results.context == {"comment": "us: microseconds"}
    assert results.records == [{"method": "shunt", "tok": 4, "us": 1.5}, {"method": "simd/put", "tok": 8, "us": None}]
    path.write_text("a\tb\n1\n")
    with pytest.raises(shunt.FileError, match=r"a\.tsv:2: has 1 cells; the first line has 2 names"):
        shunt.load_results(path)


def test_pandas_has_the_records():
    pandas = pytest.importorskip("pandas")
    frame = shunt.Results({"cores": 2}, [record(1, 5.0), record(2, 6.0)]).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["median_us"].tolist() == [5.0, 6.0]
    assert frame.attrs == {"cores": 2}


def test_a_figure_has_a_line_for_each_method():
    class Axes:
        def __init__(self):
            self.lines = []

        def plot(self, x, y, **style):
            self.lines.append((style["label"], x, y))

        def __getattr__(self, name):
            return lambda *_, **__: None

    records = [
        record(2, 6.0),
        record(1, 5.0),
        record(1, 7.0, method="copy", variant="push"),
        record(1, 1.0, phase="touch"),
    ]
    axes = shunt.plot_results(shunt.Results({}, records), axes=Axes())
    assert axes.lines == [("shunt", [1, 2], [5.0, 6.0]), ("copy push", [1], [7.0])]
    with pytest.raises(shunt.InvalidArgumentError, match='several results of "shunt" with 1 tokens'):
        shunt.plot_results(shunt.Results({}, [record(1, 5.0), record(1, 6.0)]), axes=Axes())
    with pytest.raises(shunt.InvalidArgumentError, match='phase "combine"'):
        shunt.plot_results(shunt.Results({}, records), phase="combine", axes=Axes())


def test_options_of_the_benchmark():
    now = datetime(2026, 1, 2, 3, 4, 5)
    base = ["bench", "alltoall", "--dp-size", "2", "--in-dtype", "float16", "--out-dtype", "bfloat16"]
    assert bench_all_to_all.arguments_of(["--dp-size", "2", "--in-dtype", "float16", "--ranks", "4"], now) == [
        *base, "--pplx-tsv", "data/20260102_030405_all_to_all.tsv", "--ranks", "4",
    ]  # fmt: skip
    assert bench_all_to_all.arguments_of([], now)[4:8] == ["--in-dtype", "float8_e4m3fn", "--out-dtype", "bfloat16"]
    given = ["--dp-size=2", "--in-dtype=float16", "--pplx-tsv=x.tsv"]
    assert bench_all_to_all.arguments_of(given, now) == [*base, "--pplx-tsv=x.tsv"]


@TOOL
def test_the_command_answers(tmp_path):
    ended = subprocess.run([sys.executable, "-m", "shunt", "--version"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert shunt.__version__ in ended.stdout
    text = json.dumps(shunt.plan("params", "r1"))
    assert "671" in text
    with pytest.raises(shunt.InvalidArgumentError, match="no_such_model"):
        shunt.plan("params", "no_such_model")


@TOOL
def test_the_benchmark_runs_and_its_files_are_read(tmp_path):
    options = ["--ranks", "2", "--preset", "v2-lite", "--tokens", "1", "--methods", "shunt,simd/put", "--quiet"]
    options += ["--max-seconds", "1", "--rounds", "1", "--tsv", "b.tsv", "--jsonl", "b.jsonl", "--pplx-tsv", "p.tsv"]
    ended = subprocess.run(
        [sys.executable, "-m", "shunt.bench_all_to_all", "--out-dtype", "float16", *options],
        capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = shunt.load_results(tmp_path / "b.jsonl")
    assert results.context["cores"] > 0
    assert {one["out_dtype"] for one in results.records} == {"float16"}
    assert {one["method"] for one in results.select(phase="total")} >= {"shunt", "simd/put"}
    assert len(shunt.load_results(tmp_path / "b.tsv").records) > 0
    assert "Dispatch_lat" in shunt.load_results(tmp_path / "p.tsv").records[0]


def test_without_the_command_there_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("SHUNT_TOOL", str(tmp_path / "nowhere"))
    with pytest.raises(shunt.UnavailableError, match="nowhere cannot be started"):
        shunt.plan("params", "r1")
    ended = subprocess.run([sys.executable, "-m", "shunt"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr
