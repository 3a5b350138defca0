"""Which mesh, micro-batch and rematerialisation a run had best have on a topology, by arithmetic."""

import dataclasses
import math
from collections.abc import Iterator

from slicedice.cost.estimate import step_seconds
from slicedice.cost.footprint import memory
from slicedice.cost.topology import Topology
from slicedice.spec import Execution, RunSpec, run_name
from slicedice.spec.errors import SpecError
from slicedice.spec.mesh import MeshShape

MARGIN, FIRST_MARGIN = 0.85, 0.55
"""Of a device's memory, what an estimate may fill: on TPUs, where it was held against the compiler, and elsewhere.

Of a GPU JAX takes 75 %, and the estimate was held to one GPU alone, without a mesh.
"""


def candidates(spec: RunSpec, execution: Execution, topology: Topology, *, search: bool) -> list[Execution]:
    """Executions on all of a topology, the fastest that fit first, then those that do not, the smallest first.

    Of equally fast ones the largest micro-batch comes first: what a step costs beside its FLOPs is paid less often.

    Args:
      spec: the run.
      execution: what else there is to know; its mesh is kept if it has one.
      topology: how many devices there are, and how fast they are.
      search: whether to vary micro-batch and rematerialisation; else only the mesh.

    Raises:
      SpecError: no mesh of these devices can share out the run's batch.
    """
    found = [one for mesh in _meshes(spec, execution, topology) for one in _of_mesh(spec, execution, mesh, search)]
    if not found:
        batch, group = spec.budget.batch_size, spec.router.group
        parts = batch // (group or 1)
        what = f"routing groups of {run_name(spec)} (batch_size = {batch}, router.group = {group})"
        raise SpecError(
            "--topology",
            str(topology),
            f"its {topology.devices} devices cannot share out the {parts} "
            f"{what if group else f'sequences of a batch of {run_name(spec)}'}: use a number of devices that divides "
            f"{parts}",
        )
    room = (MARGIN if topology.rate.is_tpu else FIRST_MARGIN) * topology.rate.memory

    def rank(one: Execution) -> tuple[bool, float, int]:
        needed = memory(spec, one, topology.rate)
        fits = needed <= room
        return not fits, step_seconds(spec, one, topology.rate) if fits else needed, -one.micro_batch

    return sorted(found, key=rank)


def _meshes(spec: RunSpec, execution: Execution, topology: Topology) -> Iterator[MeshShape]:
    if execution.mesh:
        yield execution.mesh_shape
        return
    groups = spec.budget.batch_size // (spec.router.group or 1)
    if groups % topology.devices:
        return
    inner = topology.devices // topology.slices
    fewest = min((e.n for e in spec.model.layer.experts), default=1)
    for expert in range(1, min(inner, fewest) + 1):
        if inner % expert == 0:
            yield MeshShape(topology.slices, inner // expert, expert)


def _of_mesh(spec: RunSpec, execution: Execution, mesh: MeshShape, search: bool) -> Iterator[Execution]:
    share, unit = spec.budget.batch_size // mesh.devices, spec.router.group or 1
    if search:
        sizes = [unit * parts for parts in range(1, share // unit + 1) if share % (unit * parts) == 0]
    else:
        sizes = [math.gcd(share, execution.micro_batch)]
        sizes = [size if size % unit == 0 else unit for size in sizes]
    for micro_batch in sizes:
        for remat in (False, True) if search else (execution.remat,):
            yield dataclasses.replace(execution, mesh=str(mesh), micro_batch=micro_batch, remat=remat)
