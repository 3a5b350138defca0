"""How many devices one run trains on, and along which axes."""

import math
import re
from dataclasses import asdict, dataclass

from slicedice.spec.errors import require
from slicedice.spec.layer import LayerSpec


@dataclass(frozen=True)
class MeshShape:
    """Sizes of a mesh's axes.

    replica: copies of everything, one on each slice of a pod. data: parts that parameters and optimizer state are cut
    into. expert: devices that share out a layer's experts. Sequences are spread over all.
    """

    replica: int = 1
    data: int = 1
    expert: int = 1

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return math.prod(self.as_dict().values())

    def as_dict(self) -> dict[str, int]:
        """Sizes by name, from the slowest links to the fastest."""
        return asdict(self)

    def __str__(self) -> str:
        """As it is written in configs: "data=8 expert=4", "" for one device."""
        return " ".join(f"{name}={size}" for name, size in self.as_dict().items() if size > 1)


def require_experts(mesh: MeshShape, layer: LayerSpec, name: str) -> None:
    """Refuses a mesh on which some devices would have no expert of a set.

    Asked of the runs that are to be trained, not of all that a grid enumerates, whose layers differ; `name` is that of
    the run.

    Raises:
      SpecError: the expert axis is longer than a set.
    """
    fewest = min((e.n for e in layer.experts), default=mesh.expert)
    valid = (
        f"{mesh.expert} devices cannot share out the n = {fewest} experts of {name}: use expert={fewest} or less, or "
        "leave it out with --only"
    )
    require(mesh.expert <= fewest, "execution.mesh", str(mesh), valid)


def parse_mesh(field: str, text: str) -> MeshShape:
    """Reads a mesh such as "data=8 expert=4"; what is left out is 1.

    Raises:
      SpecError: the text cannot be read.
    """
    parts = [part for part in re.split(r"[\s,]+", text) if part]
    pairs = [re.fullmatch(r"(replica|data|expert)=([1-9]\d*)", part) for part in parts]
    found = {pair[1]: int(pair[2]) for pair in pairs if pair}
    form = 'write sizes of replica, data and expert, as in "data=8 expert=4", or "" for one device'
    require(all(pairs) and len(found) == len(pairs), field, text, form)
    return MeshShape(**found)
