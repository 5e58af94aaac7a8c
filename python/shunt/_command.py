"""The command line tool ``shunt``: the one of the package, unless ``SHUNT_TOOL`` names another."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ._errors import UnavailableError


def tool_path() -> str:
    """The program: what SHUNT_TOOL names, else the one that was installed with this package.

    :raises UnavailableError: where there is none, as in a package that runs from its sources.
    """
    named = os.environ.get("SHUNT_TOOL")
    if named:
        return named
    beside = Path(__file__).parent / "_tool" / "bin" / "shunt"
    if not beside.is_file():
        raise UnavailableError(
            f"the command is not at {beside}; install the package, or let SHUNT_TOOL name the program"
        )
    return str(beside)


def become_tool(arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by the command. Never returns; where there is none, ends with status 2 and the reason."""
    reason: object
    try:
        tool = tool_path()
    except UnavailableError as error:
        reason = error
    else:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            os.execv(tool, [tool, *arguments])
        except OSError as error:
            reason = f"{tool} cannot be started: {error.strerror}"
    print(f"shunt: {reason}", file=sys.stderr)
    sys.exit(2)


def has_tool() -> bool:
    """Whether tool_path() finds a program."""
    try:
        return os.access(tool_path(), os.X_OK)
    except UnavailableError:
        return False
