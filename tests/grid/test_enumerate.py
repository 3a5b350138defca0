from fractions import Fraction
from typing import Any

import pytest

from slicedice.grid import Figure, Grid, GridError, Panel, Plan, axis, chain, enumerate_runs, product
from slicedice.spec import SpecError, moe_layer, resolve, run_id, run_name, study_config
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
    assert _names(enumerate_runs([(grid, config)], overrides={})) == want
    assert _names(enumerate_runs([(grid, config)], overrides={}, seeds=2)) == want[:6]
    assert _names(enumerate_runs([(Grid(LAYERS), config)], overrides={})) == want[:3]


def test_seeds_count_from_the_configs(config):
    config.seed = 7
    names = _names(enumerate_runs([(Grid(LAYERS[:1], seeds=2), config)], overrides={}))
    assert names == ["t-dense-seed7", "t-dense-seed8"]


def test_points_that_mean_the_same_are_one_run(config):
    """The router of a dense model has no effect, and one expert that is always on is dense."""
    layers = axis("model.experts", ["dense", "n=1 g=1", "n=4 k=2 g=1/2"])
    points = chain(product(layers, axis("router.alpha", [0.01, 0.1])), layers)
    plan = enumerate_runs([(Grid(points, seeds=2), config)], overrides={})
    one_seed = ["t-dense", "t-g1/2-n4-s2-dropless", "t-g1/2-n4-s2-dropless-alpha0.1"]
    assert _names(plan) == [f"{name}-seed{seed}" for seed in range(2) for name in one_seed]


def test_overrides_reach_every_run_and_leave_the_config_alone(config):
    overrides = {"optimizer.learning_rate": 1e-3, "execution.remat": True}
    plan = enumerate_runs([(Grid(LAYERS), config)], overrides=overrides)
    for spec, execution in plan.runs.values():
        assert spec.optimizer.learning_rate == 1e-3
        assert execution.remat
    assert config.optimizer.learning_rate != 1e-3


def test_an_override_of_what_the_grid_varies(config):
    points = [{"model.experts": "dense"}, {"router.gamma": 0.0}]
    for field, value in (("model.experts", "dense"), ("router.gamma", 0.1)):
        with pytest.raises(GridError, match=f"--config.{field} cannot be set: the grid varies it"):
            enumerate_runs([(Grid(points), config)], overrides={"model.layers": 2, field: value})


@pytest.mark.parametrize(
    ("overrides", "field"), [({"model.width": 3}, "model.width"), ({"model.layers": "two"}, "model.layers")]
)
def test_an_override_that_cannot_be(overrides: dict[str, Any], field: str, config):
    with pytest.raises(SpecError, match=f"{field} = .*the command line sets it") as error:
        enumerate_runs([(Grid(LAYERS), config)], overrides=overrides)
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
        enumerate_runs([(Grid([*LAYERS, point]), config)], overrides={})
    assert f"the grid's point {point} does not resolve" in str(error.value)
    assert message in str(error.value)


def test_only(config):
    grid = Grid(LAYERS, seeds=2)
    everything = enumerate_runs([(grid, config)], overrides={})
    some = enumerate_runs([(grid, config)], overrides={}, only="*-n8-*")
    assert _names(some) == ["t-g1/2-n8-s4-dropless-seed0", "t-g1/2-n8-s4-dropless-seed1"]
    assert {**everything.runs, **some.runs} == everything.runs
    second = list(everything.runs)[1]
    assert list(enumerate_runs([(grid, config)], overrides={}, only=second[:6] + "*").runs) == [second]


def test_only_that_matches_nothing(config):
    with pytest.raises(GridError, match=r"'\*-n16-\*' matches no run.*look like t-g1/2-n8-s4-dropless-seed0"):
        enumerate_runs([(Grid(LAYERS), config)], overrides={}, only="*-n16-*")


@pytest.mark.parametrize("seeds", [0, -1])
def test_no_seeds(seeds: int, config):
    with pytest.raises(GridError, match=f"--seeds {seeds} cannot be used: ask for at least 1"):
        enumerate_runs([(Grid(LAYERS), config)], overrides={}, seeds=seeds)


def test_a_grid_without_points(config):
    with pytest.raises(GridError):
        enumerate_runs([(Grid([]), config)], overrides={}, only="*")


def _scales(config) -> list:
    """Configs of two scales, the larger one first."""
    return [
        override(config, {"scale": name, "model.d_model": width}, where="a test")
        for name, width in (("u", 32), ("t", 16))
    ]


def test_scales_lie_inside_seeds_in_the_order_given(config):
    u, t = _scales(config)
    plan = enumerate_runs([(Grid(LAYERS[1:]), u), (Grid(LAYERS[:2], seeds=2), t)], overrides={})
    first = ["u-g1/2-n4-s2-dropless", "u-g1/2-n8-s4-dropless", "t-dense", "t-g1/2-n4-s2-dropless"]
    assert _names(plan) == [f"{name}-seed0" for name in first] + [f"{name}-seed1" for name in first[2:]]


def test_overrides_reach_every_scale(config):
    u, t = _scales(config)
    plan = enumerate_runs([(Grid(LAYERS), u), (Grid(LAYERS), t)], overrides={"model.layers": 3})
    assert [spec.model.layers for spec, _ in plan.runs.values()] == [3] * 6
    assert [spec.model.d_model for spec, _ in plan.runs.values()] == [32] * 3 + [16] * 3
    with pytest.raises(GridError, match=r"--config.router.gamma cannot be set: the grid varies it"):
        enumerate_runs([(Grid(LAYERS), u), (Grid([{"router.gamma": 0.1}]), t)], overrides={"router.gamma": 0.0})


def test_cells_are_coarse_first_and_their_arms_stay_together(config, rng):
    cells = [
        (1, "1/2"),
        (2, "1"),
        (2, "1/2"),
        (2, "1/4"),
        (4, "1"),
        (4, "1/4"),
        (16, "1/8"),
    ]  # as they are to be trained
    layers = {cell: moe_layer(s=cell[0], g=cell[1]) for cell in cells}
    alphas = [float(alpha) for alpha in rng.permutation([0.25, 0.5, 0.75])]
    shuffled = [layers[cells[i]] for i in rng.permutation(len(cells))]
    plan = enumerate_runs([(Grid(product(axis("router.alpha", alphas), shuffled)), config)], overrides={})
    got = [
        (spec.model.layer.sparsity, spec.model.layer.granularity, spec.router.alpha) for spec, _ in plan.runs.values()
    ]
    # Where every expert is on, alpha has no effect.
    want = [(s, Fraction(g), alpha) for s, g in cells for alpha in (alphas if s > 1 else [None])]
    assert got == want


def test_anchors_have_seeds_of_their_own(config):
    names = ["t-dense", "t-g1/2-n4-s2-dropless", "t-g1/2-n8-s4-dropless"]
    anchors = [LAYERS[2], *axis("model.experts", ["n=16 g=1/2"])]
    grid = Grid(LAYERS, anchors=anchors)
    further = [names[2], "t-g1/2-n16-s8-dropless"]
    want = [f"{name}-seed0" for name in [*names, further[1]]] + [f"{name}-seed{i}" for i in (1, 2) for name in further]
    plan = enumerate_runs([(grid, config)], overrides={})
    assert _names(plan) == want
    assert plan.asked == {}
    # A wish for seeds is one for both.
    two = enumerate_runs([(grid, config)], overrides={}, seeds=2)
    assert _names(two) == [f"{name}-seed{i}" for i in (0, 1) for name in [*names, further[1]]]
    assert two.asked == {"seeds": 2}
    # Cells with more seeds than anchors have keep them.
    many = enumerate_runs([(Grid(LAYERS[2:], seeds=4, anchors=anchors[:1], anchor_seeds=2), config)], overrides={})
    assert _names(many) == [f"{names[2]}-seed{i}" for i in range(4)]


def test_what_was_asked_for_is_what_the_grid_does_not_say(config):
    for grid, seeds, asked in (
        (Grid(LAYERS, seeds=2), 2, {}),
        (Grid(LAYERS, seeds=2), 1, {"seeds": 1}),
        (Grid(LAYERS, seeds=3, anchors=LAYERS[:1], anchor_seeds=3), 3, {}),
        (Grid(LAYERS, seeds=1, anchors=LAYERS[:1], anchor_seeds=3), 1, {"seeds": 1}),
    ):
        assert enumerate_runs([(grid, config)], overrides={}, seeds=seeds).asked == asked
    fields = {"model.layers": 2, "execution.evaluate_every": 3}  # which is no selection of runs
    plan = enumerate_runs([(Grid(LAYERS), config)], overrides=fields, seeds=2, only="*dense*")
    assert plan.asked == {"model.layers": 2, "seeds": 2, "only": "*dense*"}


def test_a_point_is_resolved_once_whatever_reads_it(config, monkeypatch):
    resolved = []

    def counted(config_):
        resolved.append(config_.model.experts)
        return resolve(config_)

    monkeypatch.setattr("slicedice.grid.enumerate.resolve", counted)
    panel = (Panel("", "n", "s"),)
    figures = (Figure("a", "A", panel), Figure("b", "B", panel, LAYERS[1:]), Figure("c", "C", panel, list(LAYERS)))
    plan = enumerate_runs([(Grid(LAYERS, figures, seeds=3, anchors=LAYERS), config)], overrides={})
    assert resolved == [point["model.experts"] for point in LAYERS]
    assert len(plan.runs) == 9


def test_figures_read_the_points_they_declare_or_else_the_grids(config):
    panel = (Panel("", "n", "s"),)
    others = axis("model.experts", ["n=16 g=1/2", "n=8 k=2 g=1/2"])
    figures = (Figure("own", "Its own", panel, others), Figure("all", "The grid's", panel))
    plan = enumerate_runs([(Grid(LAYERS, figures, seeds=2, anchors=others[:1]), config)], overrides={})
    assert plan.figures == {figure.name: figure for figure in figures}

    def read(name: str, plan: Plan = plan) -> list[str]:
        return [run_name(spec) for id_, (spec, _) in plan.runs.items() if id_ in plan.reads[name]]

    both = ["t-g1/2-n8-s4-dropless", "t-g1/2-n16-s8-dropless"]
    # All seeds of a cell, an anchor's third too.
    assert read("own") == [f"{name}-seed{i}" for i in (0, 1) for name in both] + [f"{both[1]}-seed2"]
    assert read("all") == [
        f"{name}-seed{i}" for i in (0, 1) for name in ("t-dense", "t-g1/2-n4-s2-dropless", "t-g1/2-n8-s4-dropless")
    ]
    assert set(plan.runs) == plan.reads["own"] | plan.reads["all"]
    # Figures of a selection read no more than there is.
    some = enumerate_runs([(Grid(LAYERS, figures, seeds=2), config)], overrides={}, only="*-n8-*")
    assert some.reads == {"own": set(some.runs), "all": set(some.runs)}
    none = enumerate_runs([(Grid(LAYERS, figures), config)], overrides={}, only="t-dense-*")
    assert (none.reads["own"], none.reads["all"]) == (set(), set(none.runs))


def test_a_figure_reads_its_runs_at_every_scale(config):
    panel = (Panel("", "n", "s"),)
    u, t = _scales(config)
    grids = [Grid(LAYERS, (Figure("a", "A", panel, points),)) for points in (LAYERS[:2], LAYERS[1:])]
    plan = enumerate_runs([(grids[0], u), (grids[1], t)], overrides={})
    assert list(plan.figures) == ["a"]
    read = [run_name(plan.runs[id_][0]) for id_ in plan.runs if id_ in plan.reads["a"]]
    assert [name.split("-seed")[0] for name in read] == [
        "u-dense",
        "u-g1/2-n4-s2-dropless",
        "t-g1/2-n4-s2-dropless",
        "t-g1/2-n8-s4-dropless",
    ]
    other = Grid(LAYERS, (Figure("a", "Another", panel),))
    with pytest.raises(GridError, match="Two different figures are called 'a'"):
        enumerate_runs([(grids[0], u), (other, t)], overrides={})


def test_seeds_end_where_specs_do(config):
    last = 2**32 - 1
    config.seed = last - 2
    grid = Grid(LAYERS[:1], seeds=3)
    assert [spec.seed for spec, _ in enumerate_runs([(grid, config)], overrides={}).runs.values()] == [
        last - 2,
        last - 1,
        last,
    ]
    with pytest.raises(SpecError, match=f"seed = {last - 2} cannot be used: its 4 seeds have to end below"):
        enumerate_runs([(grid, config)], overrides={}, seeds=4)
    with pytest.raises(SpecError, match=f"seed = {last - 1} .*its 3 seeds"):
        enumerate_runs([(grid, config)], overrides={"seed": last - 1})
    config.seed = last - 1
    with pytest.raises(SpecError, match="its 3 seeds"):
        enumerate_runs([(Grid(LAYERS[:1], anchors=LAYERS[:1]), config)], overrides={})


def test_a_grid_without_anchors_needs_no_seeds_for_them(config):
    config.seed = 2**32 - 1
    (run,) = enumerate_runs([(Grid(LAYERS[:1]), config)], overrides={}).runs.values()
    assert run[0].seed == 2**32 - 1


def test_seeds_are_not_for_a_grid_to_vary(config):
    with pytest.raises(GridError, match="The grid varies `seed`"):
        enumerate_runs([(Grid([{"seed": 1}]), config)], overrides={})
