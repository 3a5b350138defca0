"""Sweeps: `python -m slicedice.sweep [VERB] --grid NAME [--scale NAME]`.

Without a verb: trains the runs of the grid that the store does not have yet, then reports.
  plan    what would be trained, and what it costs
  status  the state of every run; with --watch, until all have ended
  logs    RUN: the end of its log, and of what its engine wrote
  cancel  takes the grid's runs out of the queue; those that train save a checkpoint and end
  retry   trains the runs that crashed or ran out of memory again, and only these
  gc      removes what no run needs any more, after asking
  report  tables, figures, claims and the page, from what is done; with --missing, what is not done
  why     RUN: the figures that need a run
  diff    A B: the fields in which two runs differ
Runs are named as `plan` does, or by id or the beginning of one. Without --grid, why and diff look through all grids.
"""

import argparse
import contextlib
import inspect
import json
import sys
from collections.abc import Sequence

from rich.console import Console

from slicedice import explain, files, machine
from slicedice.collecting import collect_garbage
from slicedice.commandline import door, overrides, split
from slicedice.grid import GridError, Plan, enumerate_runs, load_config, load_grid
from slicedice.launching import Attended, load_launcher
from slicedice.launching.missing import How, train_missing
from slicedice.operating import cancel, logs
from slicedice.plan import add_arguments, dry_run, executed_on, plan_verb, where
from slicedice.planning import Where
from slicedice.report.claims import judge
from slicedice.report.reference import caption, compare
from slicedice.report.results import read_results
from slicedice.report.tables import (
    cell_table,
    claim_table,
    lines_table,
    plain_console,
    show,
)
from slicedice.spec import run_id, run_name
from slicedice.spec.errors import require
from slicedice.status import status
from slicedice.store import Kind, Store, StoreError

VERBS = ("run", "plan", "status", "logs", "cancel", "retry", "gc", "report", "why", "diff")
"""What a sweep can be asked to do; the first if nothing is said."""

LAUNCHES = ("run", "retry")
"""Those that train."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m slicedice.sweep",
        description=__doc__,
        epilog="Any field of the scale's config is set by --config.FIELD=VALUE, as in "
        "--config.optimizer.learning_rate=1e-3 or --config.data.source=my_texts/.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("verb", nargs="?", choices=VERBS, default="run", help=argparse.SUPPRESS, metavar="VERB")
    p.add_argument("runs", nargs="*", metavar="RUN", help=argparse.SUPPRESS)
    p.add_argument("--grid", default="", help=f"a name ({', '.join(files.names('sweeps'))}) or the path of a grid file")
    p.add_argument(
        "--scale", help="names or paths of experiments, joined by commas; without an accelerator nano, else 10m"
    )
    p.add_argument("--seeds", type=int, help="how many seeds for each point; else as many as the grid says")
    p.add_argument("--only", default="", metavar="PATTERN", help='runs whose name or id matches, as in "*-n32-*"')
    p.add_argument("--store", default="runs", help="folder where runs live (default: %(default)s)")
    p.add_argument(
        "--launcher",
        default="local",
        help=f"one of {', '.join(files.names('launch'))}, or a path; its settings are --launcher.FIELD=VALUE",
    )
    p.add_argument("--max_concurrent", type=int, default=0, help="runs, or work units, at once; 0 for as many as pay")
    p.add_argument("--unit_hours", type=float, default=4.0, help="most hours of a cluster's work unit, by the plan")
    p.add_argument(
        "--missing", action="store_true", help="report the runs that are not done, and the figures without them"
    )
    p.add_argument(
        "--evaluation_sets", action="store_true", help="draw the figures of the held-out loss for each of them too"
    )
    p.add_argument(
        "--dry_run", action="store_true", help="print the plan and what would be submitted, and train nothing"
    )
    p.add_argument("--json", action="store_true", help="print JSON, and write no tables, figures or page")
    p.add_argument("--watch", action="store_true", help="with status: draw it again and again, until all have ended")
    p.add_argument("--yes", action="store_true", help="with gc: remove without asking")
    add_arguments(p)
    return p


@door
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status: 0, or 1 if runs ended without a result."""
    arguments, launching = split(sys.argv[1:] if arguments is None else arguments, "--launcher.")
    own, given = split(arguments, "--config.")
    options, unknown = parser().parse_known_intermixed_args(own)
    wanted = {"why": 1, "diff": 2, "logs": 1}.get(options.verb, 0)
    if not options.grid and not wanted and options.verb != "gc":
        parser().error("the following arguments are required: --grid")
    named = len(options.runs) == wanted and all(options.runs)
    require(named, options.verb, options.runs, f"name {wanted} run{'s' * (wanted != 1)}, as in --help")
    require(not options.missing or options.verb == "report", "--missing", True, "it goes with report")
    trains = options.verb in LAUNCHES
    require(not options.dry_run or trains, "--dry_run", True, f"{options.verb} trains nothing anyway")
    require(not options.watch or options.verb == "status", "--watch", True, "it goes with status")
    require(not options.yes or options.verb == "gc", "--yes", True, "it goes with gc")
    for argument in launching:
        setting, _, value = argument.partition("=")
        require(trains, setting, value, f"it goes with {' and '.join(LAUNCHES)}")
    for argument in unknown:  # elsewhere `overrides` says so
        require(options.verb not in ("logs", "gc"), "argument", argument, "it is unknown; see --help")
    draws = options.verb in (*LAUNCHES, "report") and not (options.json or options.missing or options.dry_run)
    require(draws or not options.evaluation_sets, "--evaluation_sets", True, "it goes with what draws figures")
    plans = options.verb == "plan" or options.dry_run
    for flag in ("device", "mfu", "price", "topology", "fit", "compile"):
        value, runs = getattr(options, flag), flag in ("topology", "fit", "compile") and trains
        require(plans or runs or value is None or value is False, f"--{flag}", value, "it goes with plan")
    require(options.max_concurrent >= 0, "--max_concurrent", options.max_concurrent, "use a number from 0")
    require(options.unit_hours > 0, "--unit_hours", options.unit_hours, "use a number of hours over 0")
    console, store = plain_console(stderr=options.json), Store(options.store)
    if options.verb == "logs":
        return logs(store, options.runs[0], options.launcher, console)
    if options.verb == "gc":
        return collect_garbage(store, options, console)
    if wanted:
        return _explain(options, [*unknown, *given], store, console)
    scales = _scales(options)
    plan = _enumerate(options.grid, scales, options, [*unknown, *given])
    if options.verb == "plan":
        return plan_verb(plan, store, options, console)
    if trains:
        how = _how(options, scales, _settings(launching), where(store, options)[0])
        if options.dry_run:
            return dry_run(plan, store, how, options, console)
        if options.topology is not None or options.fit or options.compile:
            plan = executed_on(plan, store, options, console)
        if not train_missing(plan, store, how, console):
            return 0
    if options.verb == "status":
        return status(plan, store, options, console)
    if options.verb == "cancel":
        return cancel(plan, store, options.launcher, console)
    if options.missing:
        return _missing(plan, store, options, console)
    if not store.exists():
        raise StoreError(f"There is no store at {options.store}, so nothing to report. Name it with --store.")
    return _report(plan, store, options, scales, console)


def _enumerate(grid: str, scales: list[str], options: argparse.Namespace, given: list[str]) -> Plan:
    configs = [load_config(scale) for scale in scales]
    return enumerate_runs(
        [(load_grid(grid, config.scale), config) for config in configs],
        overrides=overrides(configs[0], given),
        seeds=options.seeds,
        only=options.only,
    )


def _scales(options: argparse.Namespace) -> list[str]:
    """The scales asked for: by --scale, by the grid itself, or by what this machine can train."""
    if options.scale:
        scales = [scale for scale in options.scale.split(",") if scale]
        require(bool(scales), "--scale", options.scale, "name at least one")
        return scales
    here = "10m" if machine.has_accelerator() else "nano"
    scales = getattr(files.load("sweeps", options.grid), "DEFAULT_SCALES", (here,))
    trains = options.verb in LAUNCHES and not options.dry_run and isinstance(load_launcher(options.launcher), Attended)
    if trains and tuple(scales) != (here,) and not machine.has_accelerator():
        raise GridError(
            f"{options.grid} is about the scales {', '.join(scales)}, which need an accelerator, and there is none "
            "here. Name the scales to train with --scale, as in --scale nano; `plan` says what they cost."
        )
    return list(scales)


def _settings(arguments: Sequence[str]) -> dict[str, str]:
    """Reads arguments of the form `--launcher.FIELD=VALUE`."""
    pairs = [argument.removeprefix("--launcher.").partition("=") for argument in arguments]
    for (field, equals, _), argument in zip(pairs, arguments, strict=True):
        require(bool(field and equals), "argument", argument, "settings of launchers are --launcher.FIELD=VALUE")
    return {field: value for field, _, value in pairs}


def _how(options: argparse.Namespace, scales: list[str], settings: dict[str, str], where: Where) -> How:
    labels = [files.label("sweeps", options.grid), *(files.label("experiments", scale) for scale in scales)]
    return How(
        "-".join(labels),
        where,
        options.launcher,
        settings,
        options.max_concurrent,
        options.unit_hours,
        retry=options.verb == "retry",
    )


def _missing(plan: Plan, store: Store, options: argparse.Namespace, console: Console) -> int:
    lacking = explain.missing(plan, read_results(plan, store))
    if options.json:
        print(json.dumps({"count": len(plan.runs), "missing": lacking}))
        return 0
    if lacking:
        show(lines_table("Runs without a result", lacking), console)
    console.print(f"{len(lacking)} of {len(plan.runs)} runs have no result.", soft_wrap=True)
    return 0


def _explain(options: argparse.Namespace, given: list[str], store: Store, console: Console) -> int:
    """What `why` and `diff` say."""
    plans = {}
    if options.grid:
        plans[files.label("sweeps", options.grid)] = _enumerate(options.grid, _scales(options), options, given)
    else:
        own = dict.fromkeys(run.partition("-")[0] for run in options.runs)  # names begin with their scale
        own = [scale for scale in own if scale in files.names("experiments")]
        options.scale = options.scale or ",".join(own) or ("10m" if machine.has_accelerator() else "nano")
        for name in files.names("sweeps"):
            with contextlib.suppress(files.FileError, GridError):  # not every grid is for every scale
                # Unions of other grids name their scales, and would name every figure twice.
                if not hasattr(files.load("sweeps", name), "DEFAULT_SCALES"):
                    plans[name] = _enumerate(name, _scales(options), options, given)
    specs = [explain.find(run, plans, store) for run in options.runs]
    title = " and ".join(f"{run_name(spec)} · {run_id(spec)}" for spec in specs)
    if options.verb == "why":
        lines, last = explain.why(specs[0], plans), ""
        last = "" if lines else "No grid looked through trains it."
    else:
        lines = explain.diff(*specs)
        last = explain.said_of(lines)
    if options.json:
        print(json.dumps({"runs": [run_id(spec) for spec in specs], options.verb: lines, "says": last}))
        return 0
    console.print(title, highlight=False, soft_wrap=True)
    if lines:
        show(lines_table("", lines), console)
    if last:
        console.print(last, highlight=False, soft_wrap=True)
    return 0


def _report(plan: Plan, store: Store, options: argparse.Namespace, scales: list[str], console: Console) -> int:
    about = inspect.getdoc(files.load("sweeps", options.grid)) or ""
    names = {
        "grid": files.label("sweeps", options.grid),
        "scale": "+".join(files.label("experiments", s) for s in scales),
    }
    if options.json:
        results = read_results(plan, store)
        claims = [judgement.as_dict() for judgement in judge(results.rows)]
        reference = [comparison.as_dict() for comparison in compare(results.rows)]
        print(json.dumps({"runs": results.rows, "notes": results.notes, "claims": claims, "reference": reference}))
    else:
        from slicedice.report.report import write_report  # here, since whoever asks for a status need not wait for it

        results, claims, page = write_report(plan, store, **names, about=about, evaluation_sets=options.evaluation_sets)
        show(cell_table(results), console)
        if any(judgement.findings for judgement in claims):
            show(claim_table(claims), console)
        compared = compare(results.rows)
        for same, words in ((True, "the same setting"), (False, "the same layer and router, another budget")):
            if lines := [comparison.as_text() for comparison in compared if comparison.same is same]:
                show(lines_table(f"Beside the authors' values: {words}", lines), console)
        if compared:
            console.print(caption(plan), soft_wrap=True)
        for note in results.notes:
            console.print(note, soft_wrap=True)
        console.print(
            f"{page.parent}: index.html, results.parquet, results.csv, claims.json and figures",
            highlight=False,
            soft_wrap=True,
        )
    open_ = [row for row in results.rows if not Kind(row["state"]).has_result]
    failed = [row for row in open_ if row["reason"]]
    for row in failed:
        console.print(f"{row['name']} · {row['id']} {row['state']}: {row['reason']}", highlight=False, soft_wrap=True)
    if any(Kind(row["state"]).needs_retry for row in failed):
        console.print(
            "Runs that crashed or ran out of memory are trained again by the verb retry; the verb logs shows why."
        )
    if len(open_) > sum(Kind(row["state"]).needs_retry for row in open_) and options.verb in LAUNCHES:
        console.print("Runs that are missing or were preempted are trained by the same command.")
    # A report of what there is so far is a success; a sweep that has not done all is not.
    return 1 if failed or (open_ and options.verb in LAUNCHES) else 0


if __name__ == "__main__":
    sys.exit(main())
