"""Files of results, and the command from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

import shunt
from shunt import bench_all_to_all
from shunt._command import has_tool, tool_path

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
    path.write_text("a\tb\tc\td\te\tf\tg\n12e4567\t1_000\t-3\t2.5e-3\tnan\t007\t1.\n")
    (cells,) = shunt.load_results(path).records
    assert (cells["a"], cells["b"], cells["c"], cells["d"]) == ("12e4567", "1_000", -3, 0.0025)
    assert (cells["e"] != cells["e"], cells["f"], cells["g"]) == (True, 7, 1.0)
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
    with pytest.raises(shunt.InvalidArgumentError, match="with these values; tables"):
        shunt.plot_results(shunt.Results({}, records), axes=Axes(), preset="nobody's")


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


def printed(*arguments):
    """What the command prints as JSON, or what it says where it fails."""
    ended = subprocess.run(
        [tool_path(), *arguments, "--format", "json"], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return json.loads(ended.stdout) if ended.stdout else ended.stderr.strip()


PLANS = [
    ("params", "r1"),
    ("memory", "--model", "r1", "--tp", "8", "--ep", "8"),
    ("alltoall", "--model", "v2-lite", "--ep", "8"),
    ("step", "--model", "r1", "--phase", "decode", "--gpus", "32", "--dp", "32", "--ep", "32"),
    ("list-targets",),
]


@pytest.mark.parametrize("arguments", PLANS, ids=lambda one: one[0])
def test_the_planner_answers_in_this_process(arguments, monkeypatch):
    monkeypatch.setenv("SHUNT_TOOL", "/nowhere")
    answer = shunt.plan(*arguments)
    assert isinstance(answer, dict)
    monkeypatch.undo()
    if has_tool():
        assert answer == printed("plan", *arguments)


def test_predictions_answer_in_this_process(tmp_path):
    cases = Path(__file__).parents[2] / "data" / "published" / "alltoall.csv"
    answer = shunt.predict(cases)
    if has_tool():
        assert answer == printed("predict", str(cases))
    assert shunt.predict(cases, "-o", tmp_path / "rows.json") is None
    assert json.loads((tmp_path / "rows.json").read_text()) == answer


@pytest.mark.parametrize(
    "arguments",
    [("params", "no_such_model"), ("params",), ("memory", "--tp", "0"), ("parms", "r1"), ("step", "--modle", "r1")],
    ids=" ".join,
)
def test_the_planner_refuses_in_the_words_of_the_command(arguments):
    with pytest.raises(shunt.InvalidArgumentError) as raised:
        shunt.plan(*arguments)
    if has_tool():
        assert printed("plan", *arguments) in (str(raised.value), f"shunt: {raised.value}")


def test_the_planner_has_no_help_here():
    with pytest.raises(shunt.InvalidArgumentError, match="shunt plan params --help is for the command line"):
        shunt.plan("params", "--help")


def test_threads_plan_at_once():
    expected = [shunt.plan("params", name) for name in ("r1", "v2-lite")] * 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda name: shunt.plan("params", name), ["r1", "v2-lite"] * 4)) == expected


def test_what_the_linter_finds_is_an_answer(tmp_path):
    settings = tmp_path / "job.env"
    settings.write_text("NCCL_IB_DISABLE=1\nNCCL_IB_HCAA=mlx5\n")
    assert shunt.plan("env", "--lint", settings)["record"]


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
    ended = subprocess.run([sys.executable, "-m", "shunt"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr
