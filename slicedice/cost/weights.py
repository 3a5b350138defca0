"""A model's parameters as the mesh sees them: logical axes, how often, and in which dtype they are used.

Counted from the spec, without JAX; a test holds them against the model's own.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from slicedice.parallel.table import LogicalAxes, partition
from slicedice.spec import ModelSpec, RunSpec

FLOAT32 = 4


class Weight(NamedTuple):
    """A parameter of each of `layers` layers, or of the model if that is 0.

    axes: logical axes and sizes. bytes: of a value when it is used, which the compute dtype decides for most.
    """

    axes: LogicalAxes
    layers: int
    bytes: int

    @property
    def size(self) -> int:
        """Values in one."""
        size = 1
        for _, length in self.axes:
            size *= length
        return size

    @property
    def copies(self) -> int:
        """How many there are."""
        return self.layers or 1

    def shard(self, mesh: Mapping[str, int]) -> list[int]:
        """The shape of one device's part."""
        over = partition(self.axes, mesh)
        parts = (math.prod(mesh[name] for name in names) for names in over)
        return [length // count for (_, length), count in zip(self.axes, parts, strict=True)]

    @property
    def is_experts(self) -> bool:
        """Whether each device of the expert axis needs but its own part."""
        return self.axes[0][0] == "experts"


def weights(spec: RunSpec) -> Iterator[Weight]:
    """All parameters of a run's model."""
    m, compute = spec.model, compute_bytes(spec)
    width = ("d_model", m.d_model)
    yield Weight((("vocabulary", m.vocab_size), width), 0, compute)
    yield Weight((width, ("vocabulary", m.vocab_size)), 0, compute)
    gain = (("gain", m.d_model),)
    yield Weight(gain, 0, FLOAT32)
    for _ in range(5 if m.layer.wiring == "parallel" else 4):
        yield Weight(gain, m.layers, FLOAT32)
    for _ in range(4):
        yield Weight((width, ("heads", m.d_model)), m.layers, compute)
    for e in m.layer.experts:
        yield Weight((width, ("choices", e.n)), m.layers, FLOAT32)
        for axes in _feed_forward(m, m.width(e.g)):
            yield Weight((("experts", e.n), *axes), m.layers, compute)
    if m.layer.generalist:
        for axes in _feed_forward(m, m.width(m.layer.generalist)):
            yield Weight(axes, m.layers, compute)


def _feed_forward(model: ModelSpec, width: int) -> Iterator[LogicalAxes]:
    d, f = ("d_model", model.d_model), ("width", width)
    yield from ((d, f), (d, f), (f, d))


def compute_bytes(spec: RunSpec) -> int:
    """Bytes of a value in the compute dtype."""
    return 2 if spec.compute_dtype == "bfloat16" else FLOAT32
