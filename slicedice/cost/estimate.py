"""The cost of one run, by arithmetic from its spec."""

from dataclasses import asdict, dataclass
from typing import Any

from slicedice.cost.footprint import memory_parts
from slicedice.cost.rates import Rate
from slicedice.cost.traffic import traffic
from slicedice.spec import Execution, RunSpec

RECOMPUTED = 4 / 3
"""FLOPs of a rematerialised step over those of one that is not: a forward pass more."""


@dataclass(frozen=True)
class Cost:
    """What one run takes.

    parameters, active_parameters: both embeddings included. tokens, flops: of the whole training. flops_per_token: of
    training, forward and backward. memory: bytes of a device by what they are for. traffic: bytes that a device
    receives from others in a step, by what they are for. seconds: on the devices of its mesh.
    """

    parameters: int
    active_parameters: int
    flops_per_token: int
    tokens: int
    flops: int
    memory: dict[str, int]
    traffic: dict[str, int]
    devices: int
    seconds: float

    @property
    def bytes(self) -> int:
        """Memory of a device."""
        return sum(self.memory.values())

    @property
    def device_hours(self) -> float:
        """Hours times devices."""
        return self.seconds * self.devices / 3600

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "bytes": self.bytes, "traffic_bytes": sum(self.traffic.values())}


def cost(spec: RunSpec, execution: Execution, rate: Rate) -> Cost:
    """Estimates the cost of a run on devices of a kind, as many as its mesh has."""
    return Cost(
        parameters=spec.model.parameters(),
        active_parameters=spec.model.parameters(active=True),
        flops_per_token=spec.model.flops_per_token(spec.data.sequence_length),
        tokens=spec.tokens,
        flops=spec.flops,
        memory=memory_parts(spec, execution, rate),
        traffic=traffic(spec, execution),
        devices=execution.mesh_shape.devices,
        seconds=spec.budget.steps * step_seconds(spec, execution, rate),
    )


def step_seconds(spec: RunSpec, execution: Execution, rate: Rate) -> float:
    """Time of a step: what it computes and what it waits for, one after the other.

    `rate.utilization` is that of the FLOPs a run is defined by; what rematerialisation adds comes on top.
    """
    return _flops_of_a_device(spec, execution) / rate.sustained + _waiting(spec, execution, rate)


def utilization(spec: RunSpec, execution: Execution, rate: Rate, seconds: float) -> float:
    """The share of the peak that makes a step take `seconds`: the inverse of `step_seconds`.

    A step that took no longer than waiting should have is taken to have waited for nothing.
    """
    waiting = _waiting(spec, execution, rate)
    computing = seconds - waiting if seconds > waiting else seconds
    return _flops_of_a_device(spec, execution) / computing / rate.peak


def _flops_of_a_device(spec: RunSpec, execution: Execution) -> float:
    recomputed = RECOMPUTED if execution.remat else 1
    return spec.flops / spec.budget.steps * recomputed / execution.mesh_shape.devices


def _waiting(spec: RunSpec, execution: Execution, rate: Rate) -> float:
    if not execution.mesh:
        return 0.0
    moved = traffic(spec, execution)
    between = moved.pop("replicas")
    return sum(moved.values()) / rate.links + between / rate.network
