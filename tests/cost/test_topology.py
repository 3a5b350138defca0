"""Names of pods and machines."""

import pytest

from slicedice.cost.topology import parse_topology
from slicedice.spec import SpecError


@pytest.mark.parametrize(
    ("text", "devices"),
    [("v5p:4x4x4", 64), ("v5e:4x4", 16), ("v6e:16x16", 256), ("tpu7x:2x2x1", 8), ("v4:2x2x2", 8), ("h100:8", 8)],
)
def test_devices(text: str, devices: int):
    topology = parse_topology("--topology", text)
    assert topology.devices == devices
    assert str(topology) == text


def test_slices():
    topology = parse_topology("--topology", " v5e:4x4  slices=2 ")
    assert topology.devices == 32
    assert (topology.slice_name, str(topology)) == ("v5e:4x4", "v5e:4x4 slices=2")


@pytest.mark.parametrize(
    "text", ["", "v5e", "v5z:4x4", "v5e:4x4x4", "v5p:4x4", "v5e:0x4", "h100:2x4", "cpu:2", "v5e:4x"]
)
def test_what_is_none_is_told_the_forms(text: str):
    with pytest.raises(SpecError, match="v5p:4x4x4") as error:
        parse_topology("--topology", text)
    assert error.value.field == "--topology"
    assert "h100:8" in str(error.value)


def test_slices_are_made_of_hosts():
    with pytest.raises(SpecError, match="2x2 chips"):
        parse_topology("--topology", "v5e:3x3")
