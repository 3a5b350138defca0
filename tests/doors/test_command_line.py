"""`--config.FIELD=VALUE`: read as the type the field has."""

import pytest
from ml_collections import ConfigDict

from slicedice.commandline import overrides
from slicedice.spec import SpecError, study_config
from slicedice.spec.config import flat_fields


@pytest.fixture
def config() -> ConfigDict:
    return study_config()


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("--config.seed=7", "seed", 7),
        ("--config.seed=-1", "seed", -1),
        ("--config.budget.tokens=2_000_000", "budget.tokens", 2_000_000),
        ("--config.optimizer.learning_rate=4e-3", "optimizer.learning_rate", 4e-3),
        ("--config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("--config.execution.remat=true", "execution.remat", True),
        ("--config.execution.remat=False", "execution.remat", False),
        ("--config.data.source=", "data.source", ""),
        ("--config.data.source=a=b c/--config.seed=1", "data.source", "a=b c/--config.seed=1"),
        ("--config.model.experts=n=32 k=4 g=1/4", "model.experts", "n=32 k=4 g=1/4"),
        ("--config.scale=1", "scale", "1"),
    ],
)
def test_values_are_read_as_the_type_of_their_field(config: ConfigDict, argument: str, field: str, value: object):
    found = overrides(config, [argument])
    assert found == {field: value}
    assert type(found[field]) is type(value) is type(flat_fields(config)[field])


def test_several_fields_and_the_last_word(config: ConfigDict):
    assert overrides(config, []) == {}
    given = ["--config.seed=1", "--config.scale=x", "--config.seed=2"]
    assert overrides(config, given) == {"seed": 2, "scale": "x"}


def test_the_config_itself_is_left_as_it_is(config: ConfigDict):
    before = flat_fields(config)
    overrides(config, ["--config.seed=1"])
    assert flat_fields(config) == before


@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        ("--config.seed=1.0", "int"),
        ("--config.seed=", "int"),
        ("--config.budget.tokens=2e6", "int"),
        ("--config.optimizer.learning_rate=1/4", "float"),
        ("--config.execution.remat=1", "bool"),
        ("--config.execution.remat=yes", "bool"),
    ],
)
def test_another_type_is_refused_with_the_one_it_has_to_be(config: ConfigDict, argument: str, kind: str):
    field, _, value = argument.partition("=")
    with pytest.raises(SpecError) as caught:
        overrides(config, [argument])
    assert all(name in str(caught.value) for name in (field, repr(value), kind))


@pytest.mark.parametrize("field", ["learning_rate", "optimizer", "optimizer.learning_rate.x", "", "Seed"])
def test_an_unknown_field_is_refused_with_those_there_are(config: ConfigDict, field: str):
    with pytest.raises(SpecError) as caught:
        overrides(config, [f"--config.{field}=1"])
    assert all(name in str(caught.value) for name in (f"--config.{field}", *flat_fields(config)))


@pytest.mark.parametrize(
    "argument", ["--config.seed", "config.seed=1", "--seed=1", "-v", "seed=1", "word", "--config=x"]
)
def test_anything_else_is_refused(config: ConfigDict, argument: str):
    with pytest.raises(SpecError) as caught:
        overrides(config, [argument])
    assert repr(argument) in str(caught.value)
