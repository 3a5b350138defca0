"""What `sweep plan` finds out: what runs would cost on devices of a kind or on a pod, and what the compiler says."""

import statistics
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any

from slicedice import cache, machine
from slicedice.cost import RATES, Cost, Rate, checking, cost
from slicedice.cost.estimate import utilization
from slicedice.cost.fitting import candidates
from slicedice.cost.topology import Topology
from slicedice.grid import Plan
from slicedice.spec import Execution, RunSpec, program_key, run_name
from slicedice.spec.errors import SpecError, require
from slicedice.spec.mesh import require_experts
from slicedice.store import Kind, Store
from slicedice.store.files import each

MOST_TRIES = 8
"""How many executions of a run are compiled, at most, until one fits."""

KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x"}
"""Our names of devices, by JAX's."""


@dataclass(frozen=True)
class Where:
    """What runs are planned for: a kind of device, or all devices of a topology.

    price: of a device for an hour; None if it was not said.
    """

    device: str
    rate: Rate
    topology: Topology | None = None
    price: float | None = None


@dataclass(frozen=True)
class Planned:
    """A run with how it would be executed and what it would cost; `answer` is the compiler's, if it was asked."""

    spec: RunSpec
    execution: Execution
    cost: Cost
    answer: checking.Answer | None = None

    @property
    def fits(self) -> bool | None:
        """Whether the compiler says that it fits; None if it was not asked or could not say."""
        return (self.answer or {}).get("fits")


def plan_runs(plan: Plan, where: Where, missing: Container[str], *, search: bool) -> dict[str, Planned]:
    """Costs of all runs by arithmetic, by id.

    Args:
      plan: the runs.
      where: what they would run on; on a topology, each run is given the first of `fitting.candidates`, unless its
        execution names a mesh. Runs that are not to be trained are planned for it as well, so that all costs compare
        and how many train at once does not change as runs end; one that could not be keeps its own execution.
      missing: runs to train, whose meshes have to be possible.
      search: whether micro-batch and rematerialisation are chosen as well.

    Raises:
      SpecError: a topology's devices cannot share out the batch of a run to train, a mesh of one's own is not the
        topology's, or has a longer expert axis than a layer has experts.
    """
    found, known = {}, {}
    for id_, (spec, execution) in plan.runs.items():
        if id_ in missing:
            require_experts(execution.mesh_shape, spec.model.layer, run_name(spec))
        if where.topology:
            key = program_key(spec, execution)
            try:
                if key not in known:
                    known[key] = _candidates(spec, execution, where.topology, search)[0]
            except SpecError:
                if id_ in missing:
                    raise
            if key in known:  # equal programs may differ in what is not compiled
                chosen = known[key]
                execution = replace(execution, mesh=chosen.mesh, micro_batch=chosen.micro_batch, remat=chosen.remat)
        found[id_] = Planned(spec, execution, cost(spec, execution, where.rate))
    return found


def compile_runs(
    plan: Plan, planned: dict[str, Planned], where: Where, *, search: bool, tell: Callable[[str], None]
) -> dict[str, Planned]:
    """The same with what the compiler says, each distinct program compiled once.

    Args:
      plan: the runs.
      planned: what `plan_runs` found of some, for a topology of TPUs.
      where: as then.
      search: whether to go on to the next best execution of what does not fit.
      tell: called with a line on how many programs there are, and one for each; where some do not fit, again of the
        next that are tried.
    """
    assert where.topology is not None
    topology, teller = where.topology, _Teller(tell)
    tried = {id_: [one.execution] for id_, one in planned.items()}
    while True:
        programs = {id_: checking.Program(one.spec, one.execution, topology) for id_, one in planned.items()}
        asked = [programs[id_] for id_, one in planned.items() if one.answer is None]
        answers = checking.check(asked, _processes(), cache.folder() / "compiled", teller.program, teller.begin)
        for id_, one in planned.items():
            planned[id_] = replace(one, answer=one.answer or answers[programs[id_].key])
        moved = False
        for id_, one in planned.items():
            if search and one.fits is False and len(tried[id_]) < MOST_TRIES:
                rest = [e for e in _candidates(*plan.runs[id_], topology, search) if e not in tried[id_]]
                if following := _smaller(one, rest, where):
                    moved = True
                    tried[id_].append(following)
                    planned[id_] = Planned(one.spec, following, cost(one.spec, following, where.rate))
        if not moved:
            return planned


def _smaller(one: Planned, rest: list[Execution], where: Where) -> Execution | None:
    """Of executions that were not tried, what to try after one that does not fit; None if none is smaller."""
    sizes = {execution: cost(one.spec, execution, where.rate).bytes for execution in rest}
    smaller = [execution for execution in rest if sizes[execution] < one.cost.bytes]
    # The estimates of a run are off by about the same factor. The smallest of all is the last resort.
    taken = max((one.answer or {}).get("bytes") or 0, where.rate.memory)
    fitting = [execution for execution in smaller if sizes[execution] / one.cost.bytes * taken <= where.rate.memory]
    return fitting[0] if fitting else min(smaller, key=sizes.__getitem__, default=None)


def measured_rate(store: Store, device: str, mfu: float | None) -> tuple[Rate, str]:
    """The rate of a device, and where its utilization is from: what was asked for, this store's runs, or a guess."""
    rate = RATES[device]
    if mfu is not None:
        return replace(rate, utilization=mfu), f"at {mfu:.0%} of its peak, as asked for"
    ids = store.ids() if store.exists() else []
    shares = [share for share in each(lambda id_: _share(store, id_, device), ids, store.root) if share]
    if shares:
        share = statistics.median(shares)
        return replace(rate, utilization=share), f"at {share:.1%} of its peak, the median of {len(shares)} runs here"
    return rate, f"at {rate.utilization:.0%} of its peak, an assumption (--mfu says otherwise)"


def _share(store: Store, id_: str, device: str) -> float | None:
    """What a finished run sustained of its devices' peak, if it was trained on this kind."""
    state, result = store.run(id_).look()
    if state.kind is not Kind.DONE or not result or not result.get("seconds_per_step"):
        return None
    if _device(result.get("provenance") or {}) != device:
        return None
    execution = Execution(**(result.get("execution") or {}))
    if device == "cpu" and execution.mesh_shape.devices > 1:  # simulated, all on the same cores
        return None
    return utilization(store.read_spec(id_), execution, RATES[device], result["seconds_per_step"])


def _device(origin: dict[str, Any]) -> str:
    name = str(origin.get("device", ""))
    if origin.get("platform") == "cpu":
        return "cpu"
    return KINDS.get(name) or next((known for known in ("h200", "h100", "a100") if known in name.lower()), "")


def _candidates(spec: RunSpec, execution: Execution, topology: Topology, search: bool) -> list[Execution]:
    if execution.mesh:
        require(
            execution.mesh_shape.devices == topology.devices,
            "execution.mesh",
            execution.mesh,
            f"it has {execution.mesh_shape.devices} devices, and {topology} has {topology.devices}",
        )
        replicas = topology.slices == 1 or execution.mesh_shape.replica == topology.slices
        valid = f"{topology} has {topology.slices} slices, which only replicas may span: use replica={topology.slices}"
        require(replicas, "execution.mesh", execution.mesh, valid)
    return candidates(spec, execution, topology, search=search)


def _processes() -> int:
    return max(1, min(len(machine.cores()), machine.memory() // checking.CHILD_BYTES))


class _Teller:
    """Says how far the compiler is."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell, self._number, self._count = tell, 0, 0

    def begin(self, count: int, known: int) -> None:
        self._number, self._count = 0, count
        self._tell(f"{count} program{'s' * (count != 1)}, {known} known from before.")

    def program(self, program: checking.Program, answer: checking.Answer, kept: bool) -> None:
        self._number += 1
        self._tell(f"{self._number} of {self._count}: {_line(program, answer, kept)}")


def _line(program: checking.Program, answer: checking.Answer, kept: bool) -> str:
    name = run_name(program.spec).rpartition("-seed")[0]
    how = f"{program.execution.mesh or 'one device'}, micro-batch {program.execution.micro_batch}"
    how += ", remat" if program.execution.remat else ""
    if "error" in answer:
        return f"{name} ({how}): not compiled: {answer['error']}"
    size = f"{answer['bytes'] / 2**30:.2f} GiB" if answer.get("bytes") else "more than there is"
    verdict = "fits" if answer["fits"] else "does not fit"
    when = "known from before" if kept else f"{answer['seconds']:.0f} s"
    return f"{name} ({how}): {size} a device, {verdict} ({when})"
