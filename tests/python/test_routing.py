"""Routings and traces."""

from __future__ import annotations

import numpy as np
import pytest

import shunt


def test_routing_is_a_function_of_its_arguments():
    first = shunt.route("powerlaw:1.2+mask:0.1", tokens=50, experts=16, top_k=4, groups=2, group=1, seed=7)
    again = shunt.route("powerlaw:1.2+mask:0.1", tokens=50, experts=16, top_k=4, groups=2, group=1, seed=7)
    other = shunt.route("powerlaw:1.2+mask:0.1", tokens=50, experts=16, top_k=4, groups=2, group=0, seed=7)
    np.testing.assert_array_equal(first.ids, again.ids)
    np.testing.assert_array_equal(first.weights, again.weights)
    assert not np.array_equal(first.ids, other.ids)
    assert first.ids.shape == first.weights.shape == (50, 4)
    assert first.ids.dtype == np.int32
    assert ((first.ids == -1) == (first.weights == 0)).all()


def test_wrong_routing_is_refused():
    with pytest.raises(shunt.InvalidArgumentError, match="zipf"):
        shunt.route("zipf", tokens=1, experts=2, top_k=1)
    with pytest.raises(shunt.FileError, match="no_such_file"):
        shunt.route("text:no_such_file", tokens=1, experts=2, top_k=1)


def test_trace_comes_back_equal(tmp_path):
    groups = [shunt.route("uniform", tokens=3 + g, experts=8, top_k=2, groups=2, group=g) for g in range(2)]
    trace = shunt.Trace(num_experts=8, top_k=2, source="a test", steps=[groups, groups[::-1]])
    path = tmp_path / "trace.jsonl"
    shunt.write_trace(path, trace)
    back = shunt.read_trace(path)
    assert (back.num_experts, back.top_k, back.source, len(back.steps)) == (8, 2, "a test", 2)
    for one, other in zip(trace.steps, back.steps, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)
            np.testing.assert_array_equal(a.weights, b.weights)
    with pytest.raises(shunt.FileError):
        shunt.write_trace(path, trace)
    drawn = shunt.route(f"trace:{path}", tokens=3, experts=8, top_k=2, groups=2, group=0)
    np.testing.assert_array_equal(drawn.ids, groups[0].ids)
