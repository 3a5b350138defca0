"""A sweep as an XManager launch script: `xmanager launch launch/xm_sweep.py -- --grid=NAME ...`.

Takes the arguments of `python -m slicedice.sweep`, and XManager's own (`--xm_...`) beside them; the work units are
those of `--launcher xmanager`.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from slicedice import sweep

if __name__ == "__main__":  # Python would then take the launcher beside this file for XManager
    sys.exit("Start it by XManager's command: xmanager launch launch/xm_sweep.py -- --grid=NAME")

# Defines the flag that the command sets. By name: to tools that resolve imports without running them, `xmanager` may be
# the launcher beside this file.
importlib.import_module("xmanager.xm")


def _ours(arguments: Sequence[str]) -> list[str]:
    """Those for the sweep, which are made known to absl: it would end at a flag that it does not know.

    It does so before `main` is called, so that they have to be made known when this file is imported. What they mean,
    and how they may be written, is the sweep's affair alone.
    """
    ours, theirs = [], set(flags.FLAGS)
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if argument == "--" or (argument.startswith("-") and name in theirs):
            continue
        ours.append(argument)
        if argument.startswith("-") and name not in flags.FLAGS:
            define = flags.DEFINE_string if equals else flags.DEFINE_boolean
            define(name, None, "See python -m slicedice.sweep --help.")
    return ours


names = [Path(argument).name for argument in sys.argv]
arguments = _ours(sys.argv[names.index(Path(__file__).name) + 1 :] if Path(__file__).name in names else [])


def main(argv: Sequence[str]) -> int:
    """Called by the `xmanager` command, with what absl has left of the arguments; returns the sweep's exit status."""
    return sweep.main([*arguments, "--launcher", "xmanager"])
