"""One run: `python -m slicedice.train --config experiments/nano.py [--config.FIELD=VALUE ...]`.

Trains it in the store, or goes on where it was, and prints what it found. The run is the same, and has the
same id, as the point of a sweep with the same settings.
"""

import argparse
import sys
from collections.abc import Sequence

from slicedice import files, machine
from slicedice.commandline import door, overrides, split
from slicedice.cost import RATES
from slicedice.grid import Grid, enumerate_runs, load_config
from slicedice.launching.missing import How, train_missing
from slicedice.planning import Where
from slicedice.report.results import read_results
from slicedice.report.tables import cell_table, plain_console, show
from slicedice.store import Kind, Store


@door
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status: 0, or 1 if the run has no result."""
    p = argparse.ArgumentParser(
        prog="python -m slicedice.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--config", required=True, help=f"path or name ({', '.join(files.names('experiments'))})")
    p.add_argument("--store", default="runs", help="folder where runs live (default: %(default)s)")
    p.add_argument("--retry", action="store_true", help="train it again if it crashed")
    own, given = split(sys.argv[1:] if arguments is None else arguments)
    options, unknown = p.parse_known_args(own)
    config = load_config(options.config)
    plan = enumerate_runs([(Grid([{}]), config)], overrides=overrides(config, [*unknown, *given]))
    store, console = Store(options.store), plain_console()
    # One run has the whole machine to itself.
    device = machine.accelerator() or "cpu"
    how = How(
        files.label("experiments", options.config), Where(device, RATES[device]), max_concurrent=1, retry=options.retry
    )
    train_missing(plan, store, how, console)
    results = read_results(plan, store)
    show(cell_table(results), console)
    for note in results.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    (row,) = results.rows
    console.print(f"{row['name']} · {store.run(row['id']).path}", highlight=False, soft_wrap=True)
    if row["reason"]:
        console.print(row["reason"], highlight=False, soft_wrap=True)
    return 0 if Kind(row["state"]).has_result else 1


if __name__ == "__main__":
    sys.exit(main())
