"""Loads the extension module; the package imports this before everything else.

Debian's libfabric brings PSM, whose constructors take SIGINT, SIGTERM and others for themselves: a Ctrl-C would then
end the process at once, past every ``except`` and ``finally``. They leave signals alone where these variables are set.
"""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLES = ("IPATH_NO_BACKTRACE", "HFI_NO_BACKTRACE")

_unset = [name for name in _VARIABLES if name not in os.environ]
for _name in _unset:
    os.environ[_name] = "1"
from . import _core  # noqa: E402

for _name in _unset:
    del os.environ[_name]

# The planner's presets came with the package; one that runs from its sources finds those beside it.
_presets = Path(__file__).parent / "_tool" / "share" / "shunt" / "presets"
_core.set_preset_folder(str(_presets) if _presets.is_dir() else "")

__all__ = ["_core"]
