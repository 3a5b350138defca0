"""Verbs of the sweep door for runs that were launched: `logs` and `cancel`."""

import contextlib
import re
from collections.abc import Collection

from rich.console import Console

from slicedice.files import FileError
from slicedice.grid import Plan
from slicedice.launching import LaunchError, load_launcher
from slicedice.launching.queue import queue
from slicedice.spec import SpecError, run_name
from slicedice.spec.errors import require
from slicedice.store import Kind, Store, StoreError
from slicedice.store.files import each

TAIL_LINES = 200
"""Of a log: its end."""

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
"""Characters that terminals obey, but for the tab."""


def logs(store: Store, run: str, launcher: str, console: Console) -> int:
    """Prints the end of a run's log, and what its engine has of the work unit that trains it; returns 0.

    Args:
      store: where the run is.
      run: by id, the beginning of one, or name.
      launcher: asked for the engine's part if it is the path of a file; see `queue`.
    """
    found = store.matching(run)
    valid = f"it fits {len(found)} runs: {', '.join(found[:5])}" if found else "there is no such run in the store"
    require(len(found) == 1, "RUN", run, valid)
    folder = store.run(found[0])
    own = sorted(folder.path.glob("log*.txt"))
    for path in own:
        _show_end(f"{path}:", path.read_text(encoding="utf-8", errors="replace"), console)
    if not own:
        console.print(f"{run_name(store.read_spec(found[0]))} · {found[0]} has no log: it has not begun.")
    for launch in reversed(store.launches()):
        for number, unit in enumerate(launch.units):
            asked = launch.is_by_name or launch.launcher == launcher
            if found[0] in unit and asked and number < len(launch.handles):  # else its engine did not take it
                try:
                    text = load_launcher(launch.launcher, launch.settings).logs(launch, number)
                except (FileError, LaunchError, SpecError) as error:
                    text = str(error)
                if text:
                    _show_end(f"{launch.launcher}, unit {number} of {launch.name}:", text, console)
                return 0
    return 0


def _show_end(title: str, text: str, console: Console) -> None:
    """Prints the last lines of a log below a title: as text, since what a store has may be written for a terminal."""
    for line in (title, *text.splitlines()[-TAIL_LINES:]):
        console.print(CONTROL.sub("\N{REPLACEMENT CHARACTER}", line), highlight=False, soft_wrap=True)


def cancel(plan: Plan, store: Store, launcher: str, console: Console) -> int:
    """Cancels what of a plan is not over: marks runs, which workers see, and takes whole units from their engines.

    Engines are asked about runs that are marked already as well, since one may have failed the first time.

    Returns:
      0, or 1 if an engine could not be asked, or did not do it.
    """
    begun = [id_ for id_ in store.ids() if id_ in plan.runs]
    kinds = dict(zip(begun, each(lambda id_: store.run(id_).state().kind, begun, store.root), strict=True))
    marked = [id_ for id_, kind in kinds.items() if kind.is_open]  # what crashed goes on to say so
    each(lambda id_: store.run(id_).cancel(), marked, store.root)
    unfinished = {id_ for id_, kind in kinds.items() if not kind.has_result}
    waiting = queue(store, unfinished, launcher)
    notes, taken = list(waiting.notes), 0
    places = {(place.launch.name, place.unit): place for some in waiting.places.values() for place in some}
    others = {key: set(place.launch.units[place.unit]) - unfinished for key, place in places.items()}
    left = _kinds(store, set().union(*others.values()))
    # A unit that has others to train goes on with them.
    whole = [place for key, place in places.items() if all(left[id_].is_settled for id_ in others[key])]
    for launch in {place.launch.name: place.launch for place in whole}.values():
        mine = [place for place in whole if place.launch is launch]
        try:
            load_launcher(launch.launcher, launch.settings).cancel(launch, sorted(place.unit for place in mine))
            taken += sum(not place.attended for place in mine)
        except (FileError, LaunchError, SpecError) as error:
            notes.append(f"{launch.launcher} did not cancel {launch.name}: {error} The same command tries it again.")
    if marked:
        told = "Those that train save a checkpoint and end within seconds; the verb run takes them up again."
        console.print(f"{len(marked)} runs are cancelled. {told}", soft_wrap=True)
    elif taken:
        console.print(f"{taken} work units whose runs were cancelled before are taken from their queues.")
    elif not notes:
        console.print("There is nothing to cancel.")
    for note in notes:
        console.print(note, soft_wrap=True)
    return 1 if notes else 0


def _kinds(store: Store, runs: Collection[str]) -> dict[str, Kind]:
    """States of runs of any plan, by id; as the store tells them, and not only their own folders."""
    known = {}
    for id_ in runs:
        with contextlib.suppress(StoreError):  # there is no such run, or it cannot be read: its folder says what it is
            known[id_] = store.read_spec(id_), store.run(id_).execution()
    looks = store.look(known)
    return {id_: (looks[id_][0] if id_ in looks else store.run(id_).state()).kind for id_ in runs}
