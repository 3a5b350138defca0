"""A recipe: `python -m slicedice.recipe --active 300M --max_total 3B [--store FOLDER]`.

Granularity, count and routing of experts for a budget of active parameters and a limit of parameters in all, both with
embeddings, from a law fitted to the results of a store; how sure that is, and how far it lies outside of what was
measured. Where the results do not settle it, writes a grid file of the cheapest runs that would, for `sweep` to train.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from slicedice.commandline import door
from slicedice.report.recipe import TOKENS_PER_PARAMETER, Request, make_recipe
from slicedice.report.recipe.next_runs import MARK, grid_file
from slicedice.report.recipe.words import as_dict, asked_for, write
from slicedice.report.tables import plain_console
from slicedice.spec.errors import require
from slicedice.store import Store
from slicedice.store.files import write_whole

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m slicedice.recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--active", required=True, metavar="N", help="parameters that a token passes through, as in 300M")
    p.add_argument("--max_total", required=True, metavar="N", help="parameters in all, as in 3B")
    p.add_argument(
        "--tokens", metavar="N", help=f"to train on (default: {TOKENS_PER_PARAMETER} for each active parameter)"
    )
    p.add_argument("--store", default="runs", help="folder where runs live (default: %(default)s)")
    p.add_argument("--scale", default="", help="where runs may be proposed, joined by commas; else at any scale")
    p.add_argument("--next", default="next_runs.py", metavar="FILE", help="grid file to write (default: %(default)s)")
    p.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return p


@door
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status: 0 if the results settle the answer, else 1."""
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    active = number("--active", options.active)
    tokens = number("--tokens", options.tokens) if options.tokens else TOKENS_PER_PARAMETER * active
    request = Request(active, number("--max_total", options.max_total), tokens)
    require(request.max_total >= active, "--max_total", options.max_total, "it cannot be less than --active")
    recipe = make_recipe(Store(options.store), request, [scale for scale in options.scale.split(",") if scale])
    written = None
    if recipe.proposal.cells:
        written = Path(options.next)
        ours = not written.exists() or MARK in written.read_text(encoding="utf-8", errors="replace")
        require(ours, "--next", options.next, "there is another file of this name: name one that is free")
        write_whole(written, grid_file(recipe.proposal, recipe.settings, recipe.names, asked_for(request)))
    if options.json:
        print(json.dumps({**as_dict(recipe), "next_file": written and str(written)}, indent=1))
    else:
        write(recipe, written, options.store, plain_console())
    return 0 if recipe.answer.is_settled else 1


def number(flag: str, text: str) -> int:
    """Reads a count such as 300M, 1.5B or 300_000_000.

    Raises:
      SpecError: it is none, or not above 0.
    """
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([KMBT]?)", text.upper())
    require(match is not None, flag, text, "write a count such as 300M, 1.5B or 300_000_000")
    assert match is not None
    value = round(float(match[1].replace("_", "")) * UNITS[match[2]])
    require(value > 0, flag, text, "use a count above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
