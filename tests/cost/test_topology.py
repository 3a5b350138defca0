"""Names of pods and machines."""

import re

import pytest

from slicedice.cost import RATES
from slicedice.cost.topology import FORMS, parse_topology
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


@pytest.mark.parametrize(
    "text",
    ["v5e:3x3", "v5e:2x32", "v6e:4x16", "v5e:4x2", "v5e:16x32", "v5p:2x2x3", "v5p:4x2x2", "v4:4x8x4", "v5p:16x16x28"],
)
def test_slices_that_nobody_can_have_are_told_those_there_are(text: str):
    """The compiler would lay out all of these but the first."""
    with pytest.raises(SpecError) as error:
        parse_topology("--topology", text)
    assert all(word in str(error.value) for word in (text[:3], "2x2", "2x4", "4x8")), error.value


def test_every_kind_has_small_and_large_slices():
    for text in (
        "v5e:2x2",
        "v6e:8x16",
        "v4:2x4x4",
        "v5p:4x4x12",
        "v5p:16x16x24",
        "tpu7x:16x24x24",
        "v5e:16x16 slices=3",
    ):
        assert str(parse_topology("--topology", text)) == text


def test_the_forms_that_messages_show_fit_the_studys_batches():
    """512 sequences in routing groups of 8."""
    shown = re.findall(r"\w+:[\dx]+(?: slices=\d)?", FORMS)
    assert {text.split(":")[0] for text in shown} == set(RATES) - {"cpu"}
    for text in shown:
        assert 64 % parse_topology("--topology", text).devices == 0
