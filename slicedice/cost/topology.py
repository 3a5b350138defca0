"""The pods and machines that a plan can be for, by name."""

import math
import re
from dataclasses import dataclass

from slicedice.cost.rates import RATES, Rate
from slicedice.spec.errors import require

FORMS = ", ".join(
    [f"{name}:{'x'.join('4' * rate.dimensions)}" for name, rate in RATES.items() if rate.is_tpu]
    + [f"{name}:8" for name, rate in RATES.items() if rate.dimensions == 1]
)


@dataclass(frozen=True)
class Topology:
    """Devices that one run may train on.

    device: a name from `RATES`. shape: of a slice, in chips. slices: connected by a slower network.
    """

    device: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return math.prod(self.shape) * self.slices * self.rate.per_chip

    @property
    def rate(self) -> Rate:
        """What each device does."""
        return RATES[self.device]

    def __str__(self) -> str:
        """As it is written, such as "v5p:4x4x4" or "v5e:16x16 slices=2"."""
        return f"{self.slice_name}{f' slices={self.slices}' if self.slices > 1 else ''}"

    @property
    def slice_name(self) -> str:
        """The name of one slice."""
        return f"{self.device}:{'x'.join(map(str, self.shape))}"


def parse_topology(field: str, text: str) -> Topology:
    """Reads the name of a topology.

    Raises:
      SpecError: there is no such; the message lists the forms.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?: +slices=(\d+))?", text.strip())
    forms = f"write a device and its grid, as in {FORMS}, and with several slices v5e:16x16 slices=2"
    require(found is not None and found[1] in RATES, field, text, forms)
    assert found is not None
    shape, slices, rate = tuple(map(int, found[2].split("x"))), int(found[3] or 1), RATES[found[1]]
    require(len(shape) == rate.dimensions and min(*shape, slices) > 0, field, text, forms)
    # A host of a TPU slice has 2 x 2 chips.
    hosts = rate.dimensions == 1 or all(size % 2 == 0 for size in shape[:2])
    require(hosts, field, text, f"slices are of hosts of 2x2 chips, so the first two sizes are even: {forms}")
    return Topology(found[1], shape, slices)
