"""Verbs of the sweep door for runs that were launched: `logs` and `cancel`."""

from rich.console import Console

from slicedice.files import FileError
from slicedice.grid import Plan
from slicedice.launching import LaunchError, load_launcher
from slicedice.launching.queue import queue
from slicedice.spec import SpecError, run_name
from slicedice.spec.errors import require
from slicedice.store import Store

TAIL_LINES = 200
"""Of a log: its end."""


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
    for path in sorted(folder.path.glob("log*.txt")):
        console.print(f"{path}:", highlight=False, soft_wrap=True)
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]:
            console.print(line, highlight=False, soft_wrap=True)
    if not list(folder.path.glob("log*.txt")):
        console.print(f"{run_name(store.read_spec(found[0]))} · {found[0]} has no log: it has not begun.")
    for launch in reversed(store.launches()):
        for number, unit in enumerate(launch.units):
            if found[0] in unit and (launch.is_by_name or launch.launcher == launcher):
                try:
                    text = load_launcher(launch.launcher, launch.settings).logs(launch, number)
                except (FileError, LaunchError, SpecError) as error:
                    text = str(error)
                if text:
                    console.print(f"{launch.launcher}, unit {number} of {launch.name}:", highlight=False)
                    console.print(text, highlight=False, soft_wrap=True)
                return 0
    return 0


def cancel(plan: Plan, store: Store, launcher: str, console: Console) -> int:
    """Cancels what of a plan is not over: marks runs, which workers see, and takes whole units from their engines.

    Returns:
      0, or 1 if an engine could not be asked.
    """
    kinds = {id_: state.kind for id_, (state, _) in store.look(plan.runs).items()}
    some = [id_ for id_, kind in kinds.items() if not kind.is_settled and store.run(id_).path.is_dir()]
    waiting = queue(store, some, launcher)
    for id_ in some:
        store.run(id_).cancel()
    units: dict[str, set[int]] = {}
    launches = {}
    for place in waiting.places.values():
        left = [store.run(id_).state().kind for id_ in place.launch.units[place.unit] if id_ not in some]
        if all(kind.is_settled for kind in left):  # else the unit goes on with what it has besides
            units.setdefault(place.launch.name, set()).add(place.unit)
            launches[place.launch.name] = place.launch
    for name, numbers in units.items():
        load_launcher(launches[name].launcher, launches[name].settings).cancel(launches[name], sorted(numbers))
    told = "Those that train save a checkpoint and end within seconds; the verb run takes them up again."
    console.print(f"{len(some)} runs are cancelled. {told}" if some else "There is nothing to cancel.", soft_wrap=True)
    for note in waiting.notes:
        console.print(note, soft_wrap=True)
    return 1 if waiting.notes else 0
