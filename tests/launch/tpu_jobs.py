"""Jobs for the launchers of TPUs on Kubernetes and of TPU VMs."""

from pathlib import Path
from typing import Any

from slicedice.cost.topology import parse_topology
from slicedice.launching import Job, WorkUnit
from slicedice.store import Launch, Store

BUCKET = "gs://bucket/runs"


class Elsewhere(Store):
    """A store at an address, of which a launcher reads nothing."""

    def __init__(self, address: str):
        self._address = address

    @property
    def address(self) -> str:
        return self._address


def job(
    topology: str | None = "v5e:4x4",
    *,
    root: str = BUCKET,
    name: str = "granularity-1a2b3c",
    units: int = 2,
    **fields: Any,
) -> Job:
    """A job of units of one run each."""
    work = tuple(WorkUnit((f"{number:012x}",)) for number in range(units))
    found = parse_topology("--topology", topology) if topology else None
    return Job(name, Elsewhere(root), work, topology=found, **fields)


def launched(job: Job, handles: tuple[str, ...] | list[str], folder: Path) -> Launch:
    """The job's launch as it is on record."""
    units = tuple(unit.runs for unit in job.units)
    return Launch(job.name, folder, "launcher", {}, units, tuple(handles))
