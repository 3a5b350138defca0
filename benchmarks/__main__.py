"""The door to all benchmarks: runs some, prints their ratios, stores them, holds them against those stored before.

    python -m benchmarks --list
    python -m benchmarks [NAME ... | --group quick|all|gpu] [--check] [--save]
    python -m benchmarks --chart

Every benchmark is a script of its own, which prints ratios from one run; what each should reach, and how much of a
change is noise, stands in benchmarks/catalogue.py. `--save` writes benchmarks/results/DEVICE/NAME.json. `--check`
compares ratios with those stored of the same device, and ends with status 1 if one is worse beyond noise or missing.
The group `gpu` needs a GPU, and takes less than 8 minutes. `--chart` draws all that is stored, docs/performance.svg.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from benchmarks import records
from benchmarks.catalogue import BENCHMARKS, GPU_SECONDS, GROUPS, NEEDS, OTHERS, Benchmark


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is asked; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of --list")
    parser.add_argument("--group", choices=GROUPS, help="instead of names: what is quick, what needs a GPU, or all")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--save", action="store_true", help="store the ratios")
    parser.add_argument("--check", action="store_true", help="compare ratios with stored ones")
    parser.add_argument("--chart", action="store_true", help="draw what is stored")
    options = parser.parse_args(arguments)
    if options.list:
        print(listing())
        return 0
    if options.chart:
        from benchmarks.chart import write

        print(write(records.everything()))
        return 0
    by_name = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    if unknown := [name for name in options.names if name not in by_name]:
        parser.error(f"there is no benchmark {', '.join(unknown)}; --list says which there are")
    if bool(options.names) == bool(options.group):
        parser.error("give names of benchmarks or a --group; --list says what there is")
    if options.group == "gpu" and not NEEDS["gpu"][1]():
        print(f"The group gpu needs {NEEDS['gpu'][0]}, and there is none here: nothing was run.", file=sys.stderr)
        return 1
    chosen = GROUPS[options.group] if options.group else tuple(by_name[name] for name in options.names)
    began, bad = time.monotonic(), list[str]()
    for place, benchmark in enumerate(chosen):
        limit = limit_of_first(chosen[place:], time.monotonic() - began) if options.group == "gpu" else None
        if missing := benchmark.missing():
            print(f"{benchmark.name}: left out, since it needs {' and '.join(missing)}", file=sys.stderr)
            bad += [benchmark.name] * bool(options.names)
        elif not measure(benchmark, limit, check=options.check, save=options.save):
            bad.append(benchmark.name)
    if bad:
        print(f"Not well: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


def limit_of_first(left: Sequence[Benchmark], spent: float) -> float:
    """Seconds for the first of what is left to run of the group `gpu`: its share, and what those before it left."""
    return max(1.0, GPU_SECONDS - spent - sum(benchmark.gpu_seconds for benchmark in left[1:]))


def measure(benchmark: Benchmark, limit: float | None, *, check: bool, save: bool) -> bool:
    """Runs a benchmark and prints its ratios; whether it ended well, and if asked, no worse than before."""
    print(f"{benchmark.name}: {benchmark.measures}", flush=True)
    try:
        record = records.run(benchmark, limit)
    except records.RunError as error:
        print(f"{benchmark.name} {error}", file=sys.stderr)
        return False
    device, before = record["device"], None
    if check:
        before = records.stored(benchmark.name, device)
        if before is None:
            other = records.nearest(benchmark.name, device)
            near = f"; the nearest of what is stored is {other}, which says nothing of this one" if other else ""
            print(f"  nothing is stored of {device}{near}: nothing is compared")
        elif before["cores"] != record["cores"]:
            print(f"  what is stored is of {before['cores']} cores, and here are {record['cores']}")
    compared = records.compare(benchmark, record["ratios"], before["ratios"] if before else {})
    print("\n".join(line(benchmark, each, compares=before is not None) for each in compared), flush=True)
    if save:
        print(f"  stored in {records.save(record)}")
    return not any(each.is_regression for each in compared)


def line(benchmark: Benchmark, found: records.Comparison, *, compares: bool) -> str:
    """A ratio, to read: beside what is wanted, and beside the stored one."""
    bound = benchmark.bound(found.name)
    wanted = ""
    if bound.target is not None:
        words = {"higher": "at least", "lower": "at most", "one": "1, apart by a factor of at most"}[bound.better]
        wanted = f"wanted {words} {bound.target:g}"
        if found.now is not None:
            wanted += "" if bound.meets(found.now) else ": missed"
    now = "-" if found.now is None else f"{found.now:.3g}"
    text = f"  {found.name:<58} {now:>8}  {wanted:<46}"
    if compares:
        stored = "-" if found.stored is None else f"{found.stored:.3g}"
        worse = "" if found.worse is None else f" ({found.worse:.2f} times as bad, noise up to {bound.noise:g})"
        text += f"  stored {stored:>8}  {found.verdict}{worse}"
    return text.rstrip()


def listing() -> str:
    """All benchmarks, by name: what they need, how long they take, what they measure, and in which groups they are."""
    rows = [("name", "needs", "minutes", "groups", "measures")]
    for benchmark in BENCHMARKS:
        needs = ", ".join(benchmark.needs) or ("cpu" if benchmark.only_cpu else "cpu or accelerator")
        groups = ", ".join(group for group, members in GROUPS.items() if benchmark in members)
        rows.append((benchmark.name, needs, f"{benchmark.minutes:g}", groups, benchmark.measures))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{name}.py measures nothing: it {what}" for name, what in OTHERS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
