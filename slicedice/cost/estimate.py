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
        memory=memory_parts(spec, execution, tpu=rate.is_tpu),
        traffic=traffic(spec, execution),
        devices=execution.mesh_shape.devices,
        seconds=spec.budget.steps * step_seconds(spec, execution, rate),
    )


def step_seconds(spec: RunSpec, execution: Execution, rate: Rate) -> float:
    """Time of a step: what it computes and what it waits for, one after the other.

    `rate.utilization` is that of the FLOPs a run is defined by; what rematerialisation adds comes on top.
    """
    flops = spec.flops / spec.budget.steps * (RECOMPUTED if execution.remat else 1)
    computing = flops / (rate.sustained * execution.mesh_shape.devices)
    if not execution.mesh:
        return computing
    moved = traffic(spec, execution)
    between = moved.pop("replicas")
    return computing + sum(moved.values()) / rate.links + (between / rate.network if between else 0.0)
