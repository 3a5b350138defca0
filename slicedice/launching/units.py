"""Cuts what is to be trained into work units."""

from collections.abc import Mapping

from slicedice.launching.protocol import WorkUnit
from slicedice.spec import Execution, RunSpec, program_key


def work_units(
    runs: Mapping[str, tuple[RunSpec, Execution]], seconds: Mapping[str, float], most_seconds: float
) -> tuple[WorkUnit, ...]:
    """Runs of one program together, since they share what is compiled, for as long as a unit may take.

    Args:
      runs: by id, in the order to train them.
      seconds: that each takes by the plan.
      most_seconds: that a unit may take; a run that takes longer is one alone.

    Returns:
      Units in the order of their first runs, each with its runs in order.
    """
    programs: dict[str, list[str]] = {}
    for id_, (spec, execution) in runs.items():
        programs.setdefault(program_key(spec, execution), []).append(id_)
    order = {id_: place for place, id_ in enumerate(runs)}
    units = []
    for ids in programs.values():
        devices = runs[ids[0]][1].mesh_shape.devices
        while ids:
            unit, total = [ids[0]], seconds[ids[0]]
            for id_ in ids[1:]:
                if total + seconds[id_] > most_seconds:
                    break
                unit.append(id_)
                total += seconds[id_]
            units.append(WorkUnit(tuple(unit), devices, total))
            ids = ids[len(unit) :]
    return tuple(sorted(units, key=lambda unit: order[unit.runs[0]]))
