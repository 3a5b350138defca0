from typing import Any

import pytest

from slicedice.grid import Grid, GridError, Plan, axis, chain, enumerate_runs, product
from slicedice.spec import SpecError, run_id, run_name, study_config
from slicedice.spec.config import override

LAYERS = axis("model.experts", ["dense", "n=4 k=2 g=1/2", "n=8 k=2 g=1/2"])


@pytest.fixture
def config():
    scale = {"scale": "t", "model.d_model": 16, "model.layers": 1, "model.heads": 1, "budget.tokens": 10**9}
    return override(study_config(), scale, where="a test")


def _names(plan: Plan) -> list[str]:
    assert list(plan.runs) == [run_id(spec) for spec, _ in plan.runs.values()]
    return [run_name(spec) for spec, _ in plan.runs.values()]


def test_seeds_are_outermost(config):
    layers = ["t-dense", "t-g1/2-n4-s2-dropless", "t-g1/2-n8-s4-dropless"]
    grid = Grid(LAYERS, seeds=3)
    want = [f"{layer}-seed{seed}" for seed in range(3) for layer in layers]
    assert _names(enumerate_runs(grid, config, overrides={})) == want
    assert _names(enumerate_runs(grid, config, overrides={}, seeds=2)) == want[:6]
    assert _names(enumerate_runs(Grid(LAYERS), config, overrides={})) == want[:3]
    assert enumerate_runs(grid, config, overrides={}).grid is grid


def test_seeds_count_from_the_configs(config):
    config.seed = 7
    names = _names(enumerate_runs(Grid(LAYERS[:1], seeds=2), config, overrides={}))
    assert names == ["t-dense-seed7", "t-dense-seed8"]


def test_points_that_mean_the_same_are_one_run(config):
    """The router of a dense model has no effect, and one expert that is always on is dense."""
    layers = axis("model.experts", ["dense", "n=1 g=1", "n=4 k=2 g=1/2"])
    points = chain(product(layers, axis("router.alpha", [0.01, 0.1])), layers)
    plan = enumerate_runs(Grid(points, seeds=2), config, overrides={})
    one_seed = ["t-dense", "t-g1/2-n4-s2-dropless", "t-g1/2-n4-s2-dropless-alpha0.1"]
    assert _names(plan) == [f"{name}-seed{seed}" for seed in range(2) for name in one_seed]


def test_overrides_reach_every_run_and_leave_the_config_alone(config):
    overrides = {"optimizer.learning_rate": 1e-3, "execution.remat": True}
    plan = enumerate_runs(Grid(LAYERS), config, overrides=overrides)
    for spec, execution in plan.runs.values():
        assert spec.optimizer.learning_rate == 1e-3
        assert execution.remat
    assert config.optimizer.learning_rate != 1e-3


def test_an_override_of_what_the_grid_varies(config):
    points = [{"model.experts": "dense"}, {"router.gamma": 0.0}]
    for field, value in (("model.experts", "dense"), ("router.gamma", 0.1)):
        with pytest.raises(GridError, match=f"--config.{field} cannot be set: the grid varies it"):
            enumerate_runs(Grid(points), config, overrides={"model.layers": 2, field: value})


@pytest.mark.parametrize(
    ("overrides", "field"), [({"model.width": 3}, "model.width"), ({"model.layers": "two"}, "model.layers")]
)
def test_an_override_that_cannot_be(overrides: dict[str, Any], field: str, config):
    with pytest.raises(SpecError, match=f"{field} = .*the command line sets it") as error:
        enumerate_runs(Grid(LAYERS), config, overrides=overrides)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"model.experts": "n=4 k=8 g=1/8"}, "k = 8 experts cannot be active out of n = 4"),
        ({"s": 4}, "s = 4 cannot be used: the grid sets it, and there is no such field"),
    ],
)
def test_a_point_that_does_not_resolve_is_named(point: dict[str, Any], message: str, config):
    with pytest.raises(GridError) as error:
        enumerate_runs(Grid([*LAYERS, point]), config, overrides={})
    assert f"the grid's point {point} does not resolve" in str(error.value)
    assert message in str(error.value)


def test_only(config):
    grid = Grid(LAYERS, seeds=2)
    everything = enumerate_runs(grid, config, overrides={})
    some = enumerate_runs(grid, config, overrides={}, only="*-n8-*")
    assert _names(some) == ["t-g1/2-n8-s4-dropless-seed0", "t-g1/2-n8-s4-dropless-seed1"]
    assert {**everything.runs, **some.runs} == everything.runs
    second = list(everything.runs)[1]
    assert list(enumerate_runs(grid, config, overrides={}, only=second[:6] + "*").runs) == [second]


def test_only_that_matches_nothing(config):
    with pytest.raises(GridError, match=r"'\*-n16-\*' matches no run.*look like t-g1/2-n8-s4-dropless-seed0"):
        enumerate_runs(Grid(LAYERS), config, overrides={}, only="*-n16-*")


@pytest.mark.parametrize("seeds", [0, -1])
def test_no_seeds(seeds: int, config):
    with pytest.raises(GridError, match=f"--seeds {seeds} cannot be used: ask for at least 1"):
        enumerate_runs(Grid(LAYERS), config, overrides={}, seeds=seeds)


def test_a_grid_without_points(config):
    with pytest.raises(GridError):
        enumerate_runs(Grid([]), config, overrides={}, only="*")
