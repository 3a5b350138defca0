"""The worker: `python -m slicedice.work --store STORE [--unit LAUNCH/NUMBER | RUN ...]` trains runs one by one.

Every launcher starts this. Runs are those of a work unit, or are named by id, as arguments or in lines on standard
input, and their folders say what they are. Those of one program that are named together are trained at once where that
pays, as lanes of one step. In a line, runs behind a slash are not trained: they may come in a later line, and where an
accelerator trains, their step is compiled meanwhile. One is passed over that another process trains, that has a result,
that failed or was cancelled, or whose program failed. However a run ends, its folder says so, a line "RUN KIND" is
printed, and the next one begins. SIGTERM or SIGUSR1 has the worker save what it trains and end.

A unit ends when each of its runs has a result, failed or was cancelled: for one that another process trains it waits.

The exit status is 0 when nothing is left to train here, 1 when the folder of a run is gone or damaged, after the others
were trained, 75 when the same command should be started again, 28 when the disk is full.

Several processes train one run when each is started with --processes, as on a pod's hosts: with the same store and the
same runs as arguments. All see the same files; the first one writes them.
"""

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from slicedice import ahead, cache
from slicedice.faults import AGAIN, DISK_FULL, LostPeerError
from slicedice.spec import SpecError
from slicedice.spec.errors import require
from slicedice.store import Store, StoreError
from slicedice.store.files import BucketError, is_disk_full
from slicedice.store.launches import read_launch
from slicedice.worker import Worker

LOOK_SECONDS = 60
"""Between two looks at the runs that a unit waits for: in a bucket, each is a few requests."""


def _join(options: argparse.Namespace) -> None:
    """Joins the other processes, if there are to be any."""
    named = (options.process is not None, options.coordinator is not None)
    require(options.processes >= 0, "--processes", options.processes, "use a number from 0")
    require(
        named == ((True, True) if options.processes > 1 else (False, False)),
        "--processes",
        options.processes,
        "more than one take --process and --coordinator as well, and 0 or 1 neither",
    )
    if options.processes == 1:
        return
    require(
        bool(options.runs or options.unit),
        "--processes",
        options.processes,
        "name the unit, or the runs as arguments, the same in each process",
    )
    if options.processes > 1:
        last = options.processes - 1
        require(0 <= options.process <= last, "--process", options.process, f"use a number from 0 to {last}")
        address = re.fullmatch(r".+:\d+", options.coordinator)
        require(bool(address), "--coordinator", options.coordinator, "write HOST:PORT, of the first process")
    from slicedice.parallel import processes

    try:
        processes.join(options.coordinator, options.processes or None, options.process)
    except ValueError as error:
        valid = f"JAX does not find out here ({error}): say how many there are, with --process and --coordinator"
        require(options.processes > 0, "--processes", options.processes, valid)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the worker; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m slicedice.work", description=__doc__, allow_abbrev=False)
    parser.add_argument("--store", required=True, help="folder where runs live")
    parser.add_argument("--parent", type=int, help="stop, with a checkpoint, when this process is no longer the parent")
    parser.add_argument("--processes", type=int, default=1, help="how many train each run together; 0: as JAX finds")
    parser.add_argument("--process", type=int, help="which of them this is, from 0")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of the first of them")
    parser.add_argument("--unit", metavar="LAUNCH/NUMBER", help="the work unit of a launch, by its number from 0")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids; read from standard input if none is given")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Orbax tells every step of a save, and warns of settings that it changes itself; JAX, of platforms it lacks.
    # fsspec tells of every file that it reads.
    for talkative, level in (("absl", logging.ERROR), ("jax", logging.WARNING), ("fsspec", logging.WARNING)):
        logging.getLogger(talkative).setLevel(level)
    try:
        _join(options)
    except SpecError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        store = Store(options.store)
        cache.use_compilation_cache()
        worker = Worker(store, options.parent)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, worker.stop)
        if options.unit:
            return _leave(_train_unit(worker, _unit(store, options)), options)
        lines = [(options.runs, ())] if options.runs else map(_given, iter(sys.stdin.readline, ""))
        for runs, then in lines:
            for run, kind in worker.train_all(runs, then):
                print(run, kind or "passed_over", flush=True)
            if worker.should_stop():
                break
        return _leave(1 if worker.gone else 0, options)
    except (StoreError, SpecError) as error:
        print(error, file=sys.stderr)
        return _leave(1, options)
    except LostPeerError as error:
        print(error, flush=True)
        return _leave(error.status, options)
    except BucketError as error:
        print(error, file=sys.stderr)
        return _leave(AGAIN if error.passes else 1, options)
    except Exception as error:
        if is_disk_full(error):
            with contextlib.suppress(OSError):  # where this is written may be on the same disk
                print(
                    f"The disk of {options.store} is full ({error}). Finished runs are safe; make room, run again.",
                    file=sys.stderr,
                )
            return _leave(DISK_FULL, options)
        if options.processes == 1:
            raise
        traceback.print_exc()
        return _leave(1, options)


def _given(line: str) -> tuple[list[str], list[str]]:
    """The runs that a line gives, and behind a slash those that may come next."""
    runs, _, then = line.partition("/")
    return runs.split(), then.split()


def _unit(store: Store, options: argparse.Namespace) -> tuple[str, ...]:
    """The runs of the unit.

    Raises:
      SpecError: there is no such unit, or runs are named as well.
    """
    launch, _, number = options.unit.rpartition("/")
    require(not options.runs, "--unit", options.unit, "it names the runs: give no others")
    known = [one.name for one in store.launches()]
    require(launch in known, "--unit", options.unit, f"name a launch of {store.root}: {', '.join(known) or 'none'}")
    units = read_launch(store.launch_folder(launch)).units
    valid = f"{launch} has units 0 to {len(units) - 1}"
    require(number.isdecimal() and int(number) < len(units), "--unit", options.unit, valid)
    return units[int(number)]


def _train_unit(worker: Worker, runs: Sequence[str]) -> int:
    """Trains what is to be trained of a work unit; returns the exit status.

    What other processes seem to train comes last, and is waited for: who was killed together with its machine a moment
    ago gives no more signs of life, and who lives may still be killed, with nobody to train its run if this unit had
    said by then that nothing is left. An engine that counts how often it starts a unit again need not know of it.
    """
    from slicedice.parallel import processes

    left, rounds = list(runs), 0
    while True:
        for run, kind in worker.train_all(left, patient=rounds > 0):
            if kind or not rounds:
                print(run, kind or "passed_over", flush=True)
        if processes.greatest(worker.should_stop()):
            return AGAIN if not all(run in worker.gone or worker.is_settled(run) for run in left) else 0
        left = [run for run in left if not worker.is_gone(run) and processes.greatest(not worker.is_settled(run))]
        if not left:
            return 1 if worker.gone else 0
        if rounds == 1:
            print(f"waiting for others that hold {', '.join(left)}", flush=True)
        # At first what only seems to be trained is taken up at once; then it is asked about now and then.
        for _ in range(LOOK_SECONDS if rounds else 0):
            if processes.greatest(worker.should_stop()):
                return AGAIN
            time.sleep(1)
        rounds += 1


def _leave(status: int, options: argparse.Namespace) -> int:
    """The status; but of several processes, one that fails ends at once: the ordinary way out waits for the others."""
    if options.processes != 1 and status:
        _end_at_once(status)
    return status


def _end_at_once(status: int) -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    status = main()
    if ahead.is_busy():  # the ordinary way out would take away from the compiler what it works with
        _end_at_once(status)
    sys.exit(status)
