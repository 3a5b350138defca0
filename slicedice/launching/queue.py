"""What engines have in their queues, of what was launched from a store."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from slicedice.files import FileError
from slicedice.launching.loading import load_launcher
from slicedice.launching.protocol import Attended, LaunchError, Phase
from slicedice.spec import SpecError
from slicedice.store import Launch, Store


@dataclass(frozen=True)
class Place:
    """Where a run is: a work unit, by number, of a launch."""

    launch: Launch
    unit: int
    phase: Phase
    attended: bool


@dataclass(frozen=True)
class Queue:
    """Places of runs by id, of those that are in one; notes on engines that cannot be asked."""

    places: Mapping[str, Place]
    notes: tuple[str, ...]

    @property
    def on_clusters(self) -> set[str]:
        """Runs in queues that outlive the sweep that filled them. What a sweep waits for itself, others may take."""
        return {id_ for id_, place in self.places.items() if not place.attended}


def queue(store: Store, runs: Collection[str], launcher: str = "") -> Queue:
    """Asks the engines of all launches of any of `runs`.

    Args:
      store: whose launches.
      runs: ids of those that are neither done nor failed.
      launcher: also asked if it is the path of a file. Otherwise only launchers found by name are: a store may be
        someone else's, and what it says must not be executed.
    """
    wanted, places, notes = set(runs), {}, {}
    for launch in store.launches():
        if not launch.handles or not any(wanted.intersection(unit) for unit in launch.units):
            continue
        if not launch.is_by_name and launch.launcher != launcher:
            notes[f"--launcher {launch.launcher} has its engine asked about {launch.name}."] = None
            continue
        try:
            engine = load_launcher(launch.launcher, launch.settings)
            phases = engine.poll(launch)
        except (FileError, LaunchError, SpecError) as error:
            notes[f"{launch.launcher} cannot be asked about {launch.name}: {error}"] = None
            continue
        for number, (unit, phase) in enumerate(zip(launch.units, phases, strict=False)):
            if phase is not Phase.ENDED:
                places |= {id_: Place(launch, number, phase, isinstance(engine, Attended)) for id_ in unit}
    return Queue(places, tuple(notes))
