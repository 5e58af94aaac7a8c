"""The type stubs of the extension module say what the module has.

``mypy.stubtest`` takes the functions of nanobind for no functions, so names and parameters are compared here.
"""

from __future__ import annotations

import ast
from pathlib import Path

from shunt import _core

STUBS = ast.parse((Path(_core.__file__).parent / "_core.pyi").read_text())


def parameters(function):
    """Names of the parameters of a function of nanobind, from the signature that it carries."""
    overloads = function.__nb_signature__
    assert len(overloads) == 1, function
    # Its types may hold anything, also what is no Python; names stand before a colon at depth 0.
    text = overloads[0][0]
    inside = text[text.index("(") + 1 : text.rindex(")", 0, text.index("->") if "->" in text else len(text))]
    depth, names, current = 0, [], ""
    for letter in inside + ",":
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            names.append(current.split(":")[0].split("=")[0].strip())
            current = ""
        else:
            current += letter
    return [name for name in names if name not in ("self", "/", "*", "")]


def stub_parameters(function):
    return [one.arg for one in function.args.args if one.arg != "self"]


def is_property(function):
    return any(isinstance(one, ast.Name) and one.id == "property" for one in function.decorator_list)


def test_every_name_is_in_both():
    stubs = {node.name: node for node in STUBS.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert set(stubs) == {name for name in vars(_core) if not name.startswith("_")}
    for name, node in stubs.items():
        if isinstance(node, ast.FunctionDef):
            assert stub_parameters(node) == parameters(getattr(_core, name)), name
            continue
        members = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
        found = vars(getattr(_core, name))
        assert {one for one in members if not one.startswith("__")} == {one for one in found if one[0] != "_"}, name
        for member, stub in members.items():
            if is_property(stub):
                assert isinstance(found[member], property), f"{name}.{member}"
            else:
                assert stub_parameters(stub) == parameters(found[member]), f"{name}.{member}"
