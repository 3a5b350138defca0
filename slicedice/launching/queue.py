"""What engines have in their queues, of what was launched from a store."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from slicedice.files import FileError
from slicedice.launching.loading import load_launcher
from slicedice.launching.protocol import Attended, LaunchError, Phase
from slicedice.spec import SpecError
from slicedice.store import Launch, Store

REFUSED = "refused.txt"
"""In a launch's folder: why its engine took none of it. Without it and without handles, an engine may have jobs."""


@dataclass(frozen=True)
class Place:
    """Where a run is: a work unit, by number, of a launch."""

    launch: Launch
    unit: int
    phase: Phase
    attended: bool


@dataclass(frozen=True)
class Queue:
    """Places of runs by id, of those that are in one; notes on engines that are not asked.

    A run that was launched twice, as one that was cancelled and came again, may have two: the last is the newest.
    """

    places: Mapping[str, tuple[Place, ...]]
    notes: tuple[str, ...]

    @property
    def on_clusters(self) -> set[str]:
        """Runs in queues that outlive the sweep that filled them. What a sweep waits for itself, others may take."""
        return {id_ for id_, places in self.places.items() if any(not place.attended for place in places)}

    @property
    def to_begin(self) -> set[str]:
        """Of those, runs in a unit that has not begun, and so comes to them; one that runs may be past them."""
        return {
            id_
            for id_, places in self.places.items()
            if any(place.phase is Phase.QUEUED and not place.attended for place in places)
        }


def queue(store: Store, runs: Collection[str], launcher: str = "") -> Queue:
    """Asks the engines of all launches of any of `runs`.

    Args:
      store: whose launches.
      runs: ids of those in question.
      launcher: also asked if it is the path of a file. Otherwise only launchers found by name are: a store may be
        someone else's, and what it says must not be executed.
    """
    wanted, notes = set(runs), {}
    places: dict[str, tuple[Place, ...]] = {}
    for launch in store.launches():
        # A record that was named by hand is somebody's own, and may mean others' jobs.
        if not launch.tag or not any(wanted.intersection(unit) for unit in launch.units):
            continue
        if launch.tag != store.tag:
            if not _is_attended(launch):
                notes[
                    f"{launch.name} was launched from a store elsewhere, of which this is a copy, or which was moved "
                    f"here: what a queue has of it is not this store's. To hear no more of it, remove {launch.folder}."
                ] = None
            continue
        if not launch.handles:
            if not (launch.folder / REFUSED).exists():
                notes[
                    f"{launch.name} was interrupted while {launch.launcher} was handed it. If there are jobs of that "
                    f"name, take them from its queue; then remove {launch.folder}."
                ] = None
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
                place = Place(launch, number, phase, isinstance(engine, Attended))
                places |= {id_: (*places.get(id_, ()), place) for id_ in unit}
    return Queue(places, tuple(notes))


def _is_attended(launch: Launch) -> bool:
    """Whether a sweep waited for it, so that its queue is no place to look for jobs that were left."""
    try:
        return launch.is_by_name and isinstance(load_launcher(launch.launcher), Attended)
    except FileError:
        return False
