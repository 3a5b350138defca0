"""The pods and machines that a plan can be for, by name."""

import math
import re
from dataclasses import dataclass

from slicedice.cost.rates import RATES, Rate
from slicedice.spec.errors import require

FORMS = (
    "a device and its grid, as in v4:4x4x4, v5e:4x4, v5p:4x4x4, v6e:4x4 or tpu7x:2x4x4, GPUs of one machine, as in "
    "a100:8, h100:8 or h200:8, and several slices as in v5e:4x4 slices=2"
)
"""Each has at most 64 devices: more cannot share out a batch of the study's grids, 64 routing groups."""

# What Google's documentation of each kind offers (cloud.google.com/tpu/docs/v5p, and so on). The compiler is no judge:
# it lays out any grid of whole hosts, 2x32 as well. A plan for a slice that nobody can have would be found out only
# when it is ordered. A v5e or v6e alone (1x1) has no mesh to choose: --device plans for it.
FLAT = (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)
"""All slices of v5e and v6e."""

SMALL = (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)
"""Slices of v4, v5p and tpu7x of less than a cube of 4x4x4; larger ones are made of such cubes."""

MOST_CHIPS = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
"""Of one slice that is made of cubes."""


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
        """As it is written, such as "v5p:4x4x4" or "v5e:4x4 slices=2"."""
        return f"{self.slice_name}{f' slices={self.slices}' if self.slices > 1 else ''}"

    @property
    def slice_name(self) -> str:
        """The name of one slice."""
        return f"{self.device}:{'x'.join(map(str, self.shape))}"


def parse_topology(field: str, text: str) -> Topology:
    """Reads the name of a topology.

    Raises:
      SpecError: there is no such; the message lists the forms, or the slices of the device.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?: +slices=(\d+))?", text.strip())
    require(found is not None and found[1] in RATES, field, text, f"write {FORMS}")
    assert found is not None
    shape, slices, rate = tuple(map(int, found[2].split("x"))), int(found[3] or 1), RATES[found[1]]
    require(len(shape) == rate.dimensions and min(*shape, slices) > 0, field, text, f"write {FORMS}")
    if rate.is_tpu:
        require(_exists(found[1], shape), field, text, f"slices of {found[1]} are {_slices(found[1])}")
    return Topology(found[1], shape, slices)


def _exists(device: str, shape: tuple[int, ...]) -> bool:
    if device not in MOST_CHIPS:
        return shape in FLAT
    cubes = all(size % 4 == 0 for size in shape) and sorted(shape) == list(shape)
    return shape in SMALL or (cubes and math.prod(shape) <= MOST_CHIPS[device])


def _slices(device: str) -> str:
    known = ", ".join("x".join(map(str, shape)) for shape in (SMALL if device in MOST_CHIPS else FLAT))
    if device not in MOST_CHIPS:
        return known
    return f"{known}, and three multiples of 4 in ascending order, as in 4x4x8, of at most {MOST_CHIPS[device]:,} chips"
