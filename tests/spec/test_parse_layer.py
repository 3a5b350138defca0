"""Layers as people write them, and what they are told when they cannot be read."""

from fractions import Fraction

import pytest

from slicedice.spec import ExpertSet, LayerSpec, SpecError, moe_layer
from slicedice.spec.layer import parse_layer

QUARTER = ExpertSet(32, 4, Fraction(1, 4))


@pytest.mark.parametrize(
    "text", ["n=32 k=4 g=1/4", "n=32 g=1/4", "g=1/4 n=32 k=4", "  n=32   k=4 g=2/8 ", "n=32 k=4 g=0001/4"]
)
def test_one_layer_however_it_is_written(text: str):
    assert parse_layer(text) == LayerSpec((QUARTER,))


def test_k_left_out_makes_room_for_a_generalist():
    assert parse_layer("n=6 g=1/4", "1/2") == parse_layer("n=6 k=2 g=1/4", "2/4")


def test_sets_keep_their_order():
    layer = parse_layer("n=4 k=1 g=1/2+n=8 k=2 g=1/4")
    assert layer.experts == (ExpertSet(4, 1, Fraction(1, 2)), ExpertSet(8, 2, Fraction(1, 4)))
    assert " + ".join(map(str, layer.experts)) == "n=4 k=1 g=1/2 + n=8 k=2 g=1/4"


@pytest.mark.parametrize("text", ["dense", " dense ", "n=1 k=1 g=1", "n=1 g=1", "n=1 k=1 g=3/3"])
def test_one_expert_that_is_always_on_is_dense(text: str):
    layer = parse_layer(text, wiring="plain")
    assert layer == LayerSpec((), Fraction(1))
    assert layer.is_dense


@pytest.mark.parametrize("text", ["n=1 k=1 g=1/2", "n=2 k=1 g=1", "n=2 k=2 g=1/2"])
def test_other_layers_are_not(text: str):
    assert not parse_layer(text).is_dense


FORM = 'write "dense" or sets such as "n=32 k=4 g=1/4"'
EXACT = "exact fraction such as 1/4"


@pytest.mark.parametrize(
    ("experts", "field", "value", "valid"),
    [
        ("", "model.experts", "''", FORM),
        ("sparse", "model.experts", "'sparse'", FORM),
        ("32", "model.experts", "'32'", FORM),
        ("n=32 k=4", "model.experts", "'n=32 k=4'", FORM),
        ("k=4 g=1/4", "model.experts", "'k=4 g=1/4'", FORM),
        ("n=32 k=4 g=1/4 d=3", "model.experts", "'n=32 k=4 g=1/4 d=3'", FORM),
        ("n=32 n=16 k=4 g=1/4", "model.experts", "'n=32 n=16 k=4 g=1/4'", FORM),
        ("n=32 k=4 g=1/4 +", "model.experts", "''", FORM),
        ("dense + n=4 k=1 g=1", "model.experts", "'dense'", FORM),
        ("n=32 k=4 g=0.25", "model.experts g", "'0.25'", EXACT),
        ("n=32 k=4 g=0", "model.experts g", "'0'", EXACT),
        ("n=32 k=4 g=1/0", "model.experts g", "'1/0'", EXACT),
        ("n=32 k=4 g=-1/4", "model.experts g", "'-1/4'", EXACT),
        ("n=x k=4 g=1/4", "model.experts n", "'x'", "whole number above 0"),
        ("n=0 k=4 g=1/4", "model.experts n", "'0'", "whole number above 0"),
        ("n=8 k=0 g=1/4", "model.experts k", "'0'", "whole number above 0"),
        ("n=8 k=1.5 g=1/4", "model.experts k", "'1.5'", "whole number above 0"),
        ("n=3 k=4 g=1/4", "model.experts", "'n=3 k=4 g=1/4'", "k = 4 experts cannot be active out of n = 3"),
        ("n=3 g=1/4", "model.experts", "'n=3 g=1/4'", "k = 4 experts cannot be active out of n = 3"),
        ("n=8 g=2/3", "model.experts", "'n=8 g=2/3'", "name k"),
        # k is left out, and there is more than one set to share the active width.
        ("n=8 g=1/2 + n=8 k=2 g=1/4", "model.experts", "'n=8 g=1/2'", "name k"),
    ],
)
def test_experts_that_cannot_be_read(experts: str, field: str, value: str, valid: str):
    with pytest.raises(SpecError) as error:
        parse_layer(experts)
    assert error.value.field == field
    assert f"{field} = {value} cannot be used" in str(error.value)
    assert valid in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "field", "value", "valid"),
    [
        (("n=6 k=2 g=1/4", "0.5"), "model.generalist", "'0.5'", EXACT),
        (("n=6 k=2 g=1/4", "0"), "model.generalist", "'0'", EXACT),
        (("dense", "1/2"), "model.generalist", "'1/2'", "no experts"),
        (("n=6 k=2 g=1/4", "1/2", "serial"), "model.wiring", "'serial'", "parallel, plain"),
        (("n=6 g=1/4", "1"), "model.experts", "'n=6 g=1/4'", "name k"),
    ],
)
def test_generalists_that_cannot_be(arguments, field: str, value: str, valid: str):
    with pytest.raises(SpecError) as error:
        parse_layer(*arguments)
    assert error.value.field == field
    assert f"{field} = {value} cannot be used" in str(error.value)
    assert valid in str(error.value)


def test_moe_layer():
    assert moe_layer(s=8, g="1/4") == {"model.experts": "n=32 k=4 g=1/4"}
    assert moe_layer(s=1, g="1") == {"model.experts": "n=1 k=1 g=1"}
    assert moe_layer(s=Fraction(3, 2), g=Fraction(1, 2)) == {"model.experts": "n=3 k=2 g=1/2"}


def test_sets_of_a_layer_share_what_the_generalist_leaves():
    assert moe_layer(s=8, g="1/2+1/4") == {"model.experts": "n=8 k=1 g=1/2 + n=16 k=2 g=1/4"}
    assert moe_layer(s=8, g="1/4", generalist="1/2") == {
        "model.experts": "n=30 k=2 g=1/4",
        "model.generalist": "1/2",
    }
    assert moe_layer(s=4, g="1/4+1/8", generalist="1/2") == {
        "model.experts": "n=7 k=1 g=1/4 + n=14 k=2 g=1/8",
        "model.generalist": "1/2",
    }


@pytest.mark.parametrize(
    ("s", "g", "field", "valid"),
    [
        (8, "2/3", "g", "k = 3/2 has to be a whole number"),
        (8, "1+1/2", "g", "k = 1/2 has to be a whole number"),
        (8, "0.25", "g", EXACT),
        (8, "1/4+0.25", "g", EXACT),
        (Fraction(1, 2), "1/4", "s", "at least k = 4"),
        (Fraction(9, 8), "1/4", "s", "n = 9/2"),
    ],
)
def test_moe_layer_errors(s, g: str, field: str, valid: str):
    with pytest.raises(SpecError) as error:
        moe_layer(s=s, g=g)
    assert error.value.field == field
    assert valid in str(error.value)


@pytest.mark.parametrize(("generalist", "field"), [("1", "g"), ("0.5", "generalist"), ("3/4", "g"), ("2", "g")])
def test_a_generalist_that_leaves_too_little(generalist: str, field: str):
    with pytest.raises(SpecError) as error:
        moe_layer(s=8, g="1/2", generalist=generalist)
    assert error.value.field == field
