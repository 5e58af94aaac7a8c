"""The examples run and say what they should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"


def output_of(name):
    command = [sys.executable, str(EXAMPLES / name)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_a_step():
    assert output_of("step.py") == "[2.0, 4.0, 6.0, 8.0]\n"


def test_split_phases():
    assert output_of("overlap.py").startswith("last step of each rank, ms: [")


def test_a_layer_learns():
    pytest.importorskip("torch")
    losses = [float(one) for one in re.findall(r"[\d.]+", output_of("moe_layer.py"))]
    assert len(losses) == 5
    assert losses[-1] < 0.2 * losses[0]
