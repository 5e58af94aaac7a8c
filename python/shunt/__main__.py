"""``python -m shunt ARGUMENTS``: the command line tool that came with the package."""

from __future__ import annotations

import sys

from ._command import become_tool

if __name__ == "__main__":
    become_tool(sys.argv[1:])
