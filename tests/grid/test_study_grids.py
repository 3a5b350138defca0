"""Each grid of `sweeps/` has the study's runs, as the study's tables list them, and says truly how many."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import pytest

import slicedice
from slicedice import files
from slicedice.files import FileError
from slicedice.grid import Plan, enumerate_runs, load_config, load_grid
from slicedice.spec import ExpertSet, LayerSpec, RunSpec, resolve, run_id
from slicedice.spec.config import override

SWEEPS = Path(slicedice.__file__).parents[1] / "sweeps"
NAMES = sorted(path.stem for path in SWEEPS.glob("*.py"))
STEPS = {"10m": 191, "20m": 381, "50m": 954, "80m": 1526, "110m": 2098, "200m": 3815, "300m": 5722}
SMALL = ("10m", "20m")
LONG = {"10m": 3815, "20m": 1907}  # steps of 4B and of 2B tokens

ALL = ["1", "1/2", "1/4", "1/8", "1/16", "1/32", "1/64"]
# Granularities of each sparsity, as section 3.1 lists them; the dense model comes on top.
GRID = {
    1: ALL[1:4],
    2: ALL,
    4: ALL,
    8: ALL,
    16: ALL[:5],
    32: ALL[1:5],
    64: ALL[1:5],
    128: ALL[1:3],
    256: ["1/2", "1/4", "1/16"],
}
# (n1, n2): s, by granularities and active experts of both sets (table 3).
HETEROGENEOUS = {
    (("1/2", "1/4"), (1, 2)): {(4, 8): 4, (8, 16): 8, (16, 32): 16, (32, 64): 32},
    (("1/4", "1/8"), (2, 4)): {(8, 16): 4, (16, 32): 8, (32, 64): 16, (64, 128): 32},
    (("1/8", "1/16"), (4, 8)): {(16, 32): 4, (32, 64): 8, (64, 128): 16, (128, 256): 32},
    (("1/16", "1/32"), (8, 16)): {(16, 32): 2, (32, 64): 4, (64, 128): 8, (128, 256): 16},
}
# n, by g_gen, g and k.
GENERALIST = {
    ("1/2", "1/2", 1): (3, 7, 15),
    ("1/2", "1/4", 2): (6, 14, 30, 62),
    ("1/2", "1/8", 4): (12, 28, 60, 124),
    ("1/4", "1/4", 3): (7, 15, 31, 63, 127),
    ("1/4", "1/8", 6): (14, 30, 62),
    ("1/8", "1/8", 7): (15, 31, 63, 127),
    ("1/8", "1/16", 14): (30,),
    ("1/8", "1/32", 28): (60,),
}
MIXED = ((7, 14), (15, 30), (31, 62))  # of 1/4 and 1/8 beside a generalist of 1/2, k = (1, 2)

Run = tuple[LayerSpec, str | None, float | None, float | None, float, int]
"""Layer, router, alpha, gamma, learning rate, steps."""

DENSE = LayerSpec((), Fraction(1))


def layer(*sets: tuple[int, int, str], generalist: str = "", wiring: str | None = None) -> LayerSpec:
    experts = tuple(ExpertSet(n, k, Fraction(g)) for n, k, g in sets)
    return LayerSpec(experts, Fraction(generalist) if generalist else None, wiring)


def homogeneous(s: int, g: str) -> LayerSpec:
    n, k = s / Fraction(g), 1 / Fraction(g)
    assert n.denominator == k.denominator == 1
    return layer((int(n), int(k), g))


LAYERS = {homogeneous(s, g) for s, gs in GRID.items() for g in gs}
ANCHORS = {DENSE, homogeneous(8, "1/4"), homogeneous(32, "1/8")}


def runs(layers: Iterable[LayerSpec], steps: int, kind="dropless", alpha=0.01, gamma=0.0, rate=4e-4) -> set[Run]:
    """Layers trained as told; what has no effect in a layer is None there."""
    found: set[Run] = set()
    for each in layers:
        if each.is_dense:
            found.add((each, None, None, None, rate, steps))
        elif all(e.k == e.n for e in each.experts):
            found.add((each, "dropless", None, None, rate, steps))
        else:
            found.add((each, kind, alpha, gamma, rate, steps))
    return found


def run_of(spec: RunSpec) -> Run:
    router = spec.router
    return spec.model.layer, router.kind, router.alpha, router.gamma, spec.optimizer.learning_rate, spec.budget.steps


@functools.cache
def plan(name: str, *scales: str) -> Plan:
    return enumerate_runs([(load_grid(name, scale), load_config(scale)) for scale in scales], overrides={})


def specs(plan_: Plan) -> list[RunSpec]:
    return [spec for spec, _ in plan_.runs.values()]


def check(name: str, scale: str, want: set[Run], anchors: set[Run] | None = None) -> None:
    """The plan trains `want` and the anchors once with the first seed, and the anchors with two more."""
    anchors = runs(ANCHORS, STEPS[scale]) if anchors is None else anchors
    found = Counter((spec.seed, run_of(spec)) for spec in specs(plan(name, scale)))
    expected = {(0, run) for run in want | anchors} | {(seed, run) for run in anchors for seed in (1, 2)}
    assert set(found) == expected
    assert set(found.values()) == {1}
    # All else is the scale's own.
    dense, _ = resolve(load_config(scale))
    for spec in specs(plan(name, scale)):
        assert (spec.data, spec.evaluation, spec.compute_dtype) == (dense.data, dense.evaluation, "bfloat16")
        assert (spec.scale, spec.budget.batch_size, spec.model.d_model) == (scale, 512, dense.model.d_model)
        assert spec.router.capacity_factor == (1.2 if spec.router.kind == "default" else None)


@pytest.mark.parametrize("scale", STEPS)
def test_granularity_vs_count(scale: str):
    assert len(LAYERS) == 42
    assert max(each.count for each in LAYERS) == 4096
    check("granularity_vs_count", scale, runs(LAYERS | {DENSE}, STEPS[scale]))
    first = [spec.model.layer for spec in specs(plan("granularity_vs_count", scale)) if spec.seed == 0]
    assert [each.sparsity for each in first] == sorted(each.sparsity for each in first), "sparsest cells last"


def mixtures() -> dict[LayerSpec, tuple[int, tuple[str, str]]]:
    """Heterogeneous layers of table 3, with their sparsity and granularities."""
    found = {}
    for ((g1, g2), (k1, k2)), counts in HETEROGENEOUS.items():
        for (n1, n2), s in counts.items():
            found[layer((n1, k1, g1), (n2, k2, g2))] = s, (g1, g2)
    assert len(found) == 16
    assert all(each.sparsity == s for each, (s, _) in found.items())
    return found


@pytest.mark.parametrize("scale", STEPS)
def test_heterogeneous(scale: str):
    parents = {homogeneous(s, g) for s, gs in mixtures().values() for g in gs if g in GRID[s]}
    check("heterogeneous", scale, runs({DENSE, *mixtures(), *parents}, STEPS[scale]))


@pytest.mark.parametrize("scale", STEPS)
def test_generalist(scale: str):
    one_size, alone = set(), set()
    for (general, g, k), counts in GENERALIST.items():
        for n in counts:
            s = n * Fraction(g) + Fraction(general)
            assert s.denominator == 1, "total parameters are matched"
            alone.add(homogeneous(int(s), g))
            one_size |= {layer((n, k, g), generalist=general, wiring=w) for w in ("plain", "parallel")}
    assert len(one_size) == 2 * 25
    assert alone < LAYERS
    two_sizes = {
        layer((n1, 1, "1/4"), (n2, 2, "1/8"), generalist="1/2", wiring=w)
        for n1, n2 in MIXED
        for w in ("plain", "parallel")
    }
    mixed_alone = {each for each, (s, gs) in mixtures().items() if gs == ("1/4", "1/8") and s in (4, 8, 16)}
    assert {each.sparsity for each in two_sizes} == {each.sparsity for each in mixed_alone} == {4, 8, 16}
    check("generalist", scale, runs({DENSE} | alone | one_size | mixed_alone | two_sizes, STEPS[scale]))
    # Each figure compares what the study compares in it.
    of_one = figure_runs("generalist", scale, "figure_14" if scale in SMALL else "figure_5")
    assert of_one == runs({DENSE} | alone | one_size, STEPS[scale])
    assert figure_runs("generalist", scale, "figure_21") == runs({DENSE} | mixed_alone | two_sizes, STEPS[scale])


def figure_runs(name: str, scale: str, figure: str) -> set[Run]:
    plan_ = plan(name, scale)
    return {run_of(plan_.runs[id_][0]) for id_ in plan_.reads[figure]}


@pytest.mark.parametrize("scale", STEPS)
def test_dropless(scale: str):
    cells, by_figure = LAYERS | {DENSE}, {}
    for figure, gamma in (("figure_6", 0.0), ("figure_23", 1e-3)):
        arms = (runs(cells, STEPS[scale], kind=kind, gamma=gamma) for kind in ("dropless", "default"))
        by_figure[figure] = set().union(*arms)
        assert figure_runs("dropless", scale, figure) == by_figure[figure]
        assert figure_runs("dropless", scale, f"{figure}_without_capacity") == by_figure[figure]
    check("dropless", scale, by_figure["figure_6"] | by_figure["figure_23"])


@pytest.mark.parametrize("scale", STEPS)
def test_load_balancing(scale: str):
    cells = {each for each in LAYERS if each.sparsity > 1} | {DENSE}  # where every expert is on nothing is balanced
    want = set()
    for alpha in (1e-4, 1e-2):
        for gamma in (0.0, 1e-3):
            want |= runs(cells, STEPS[scale], alpha=alpha, gamma=gamma)
    assert len(want) == 4 * 39 + 1
    check("load_balancing", scale, want)


@pytest.mark.parametrize("scale", STEPS)
def test_reweighting(scale: str):
    every_on = {layer((n, n, g)) for n, g in ((2, "1/2"), (4, "1/4"), (8, "1/8"))}
    check("reweighting", scale, runs({DENSE} | every_on, STEPS[scale]))


@pytest.mark.parametrize("scale", STEPS)
def test_learning_rate(scale: str):
    rates = (1e-4, 4e-4, 1e-3, 4e-3, 1e-2)
    check("learning_rate", scale, set().union(*(runs(ANCHORS, STEPS[scale], rate=rate) for rate in rates)))


@pytest.mark.parametrize("scale", SMALL)
def test_compute_threshold(scale: str):
    budgets = (STEPS[scale], LONG[scale])
    want, anchors = (set().union(*(runs(cells, steps) for steps in budgets)) for cells in (LAYERS | {DENSE}, ANCHORS))
    check("compute_threshold", scale, want, anchors)
    assert list(plan("compute_threshold", scale).figures) == ["figure_16" if scale == "10m" else "figure_17"]


@pytest.mark.parametrize("scale", sorted(set(STEPS) - set(SMALL)))
def test_compute_threshold_has_no_second_budget_at_the_main_scales(scale: str):
    with pytest.raises(FileError, match=f"there is no second budget at {scale}: choose 10m, 20m, nano, smoke"):
        load_grid("compute_threshold", scale)


def grids(scale: str) -> list[str]:
    """All grids of single questions that there are at a scale."""
    return [
        name
        for name in NAMES
        if name != "paper" and (name != "compute_threshold" or scale not in set(STEPS) - set(SMALL))
    ]


@pytest.mark.parametrize("scale", ["smoke", "nano", *STEPS])
def test_paper_is_the_union_of_all_grids(scale: str):
    assert len(grids(scale)) >= 7
    assert set(plan("paper", scale).runs) == set().union(*(plan(name, scale).runs for name in grids(scale)))
    figures = {figure for name in grids(scale) for figure in plan(name, scale).figures}
    assert set(plan("paper", scale).figures) == figures
    for figure in figures:
        reads = (plan(name, scale).reads.get(figure, set()) for name in grids(scale))
        assert plan("paper", scale).reads[figure] >= set().union(*reads)


def test_paper_over_its_scales():
    scales = files.load("sweeps", "paper").SCALES
    assert tuple(scales) == tuple(STEPS)
    whole = plan("paper", *scales)
    assert set(whole.runs) == set().union(*(plan("paper", scale).runs for scale in scales))
    assert len(whole.runs) > 2000
    assert len({(spec.scale, spec.seed, run_of(spec)) for spec in specs(whole)}) == len(whole.runs)
    place = [
        (spec.seed, scales.index(spec.scale), spec.model.layer.sparsity, -spec.model.layer.granularity)
        for spec in specs(whole)
    ]
    assert place == sorted(place), "seeds outermost, then scales, then cells from coarse to fine"


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_say_how_many_runs_there_are(name: str):
    about = " ".join((files.load("sweeps", name).__doc__ or "").split())
    at_nano = re.search(r"at `nano`(?:, [^,;]*,)? (\d[\d,]*)", about)
    assert at_nano, about
    assert int(at_nano[1].replace(",", "")) == len(plan(name, "nano").runs)
    if name == "paper":
        there, words = plan(name, *STEPS), "over the seven scales"
    else:
        there, words = plan(name, "10m" if name == "compute_threshold" else "50m"), "a scale"
    by_scale = re.search(rf"Runs: (\d[\d,]*) {words}", about)
    assert by_scale, about
    assert int(by_scale[1].replace(",", "")) == len(there.runs)
    cost = re.search(r"(\d\.\de\d\d) FLOPs", about)
    assert cost, about
    of = {"paper": STEPS, "compute_threshold": SMALL}.get(name, ("300m",))
    assert cost[1] == f"{sum(spec.flops for spec, _ in plan(name, *of).runs.values()):.1e}".replace("+", "")


@pytest.mark.parametrize("name", NAMES)
def test_grids_can_be_read_at_a_glance(name: str):
    assert len((SWEEPS / f"{name}.py").read_text().splitlines()) < 60


# Settings that are compared with each other on one layer, and how many they are.
ARMS: dict[str, tuple[Callable[[RunSpec], object], int]] = {
    "dropless": (lambda spec: (spec.router.kind, spec.router.gamma), 4),
    "load_balancing": (lambda spec: (spec.router.alpha, spec.router.gamma), 4),
    "generalist": (lambda spec: spec.model.layer.wiring, 2),
    "learning_rate": (lambda spec: spec.optimizer.learning_rate, 5),
    "compute_threshold": (lambda spec: spec.budget.steps, 2),
}


@pytest.mark.parametrize("scale", ["nano", "10m"])
@pytest.mark.parametrize("within", ["itself", "paper"])
@pytest.mark.parametrize("name", ARMS)
def test_wherever_a_plan_is_stopped_arms_have_as_many_cells(name: str, within: str, scale: str):
    (arm, count), part = ARMS[name], set(plan(name, scale).runs)
    whole = plan(name if within == "itself" else within, scale)
    order = [(_layer(spec), spec) for id_, (spec, _) in whole.runs.items() if id_ in part]
    arms: dict[tuple, set] = {}
    for cell, spec in order:
        arms.setdefault(cell, set()).add(arm(spec))
    # Dense models, say, have no router: they are left out, as are anchors' further seeds in one of the arms.
    compared = [arm(spec) for cell, spec in order if len(arms[cell]) == count]
    assert len(compared) >= 2 * count
    counts = dict.fromkeys(compared, 0)
    assert len(counts) == count
    for each in compared:
        counts[each] += 1
        assert max(counts.values()) - min(counts.values()) <= 1


def _layer(spec: RunSpec) -> tuple:
    return spec.seed, spec.model.layer.experts, spec.model.layer.generalist


@pytest.mark.parametrize("scale", ["smoke", "nano", "10m", "20m", "50m", "300m"])
def test_a_plan_has_all_that_its_figures_read(scale: str):
    for name in grids(scale):
        grid, config, whole = load_grid(name, scale), load_config(scale), plan(name, scale)
        assert [figure.name for figure in grid.figures] == list(whole.figures) == list(whole.reads)
        for figure in grid.figures:
            points = figure.points or grid.points
            read = {run_id(resolve(override(config, point, where="a test"))[0]) for point in points}
            assert len(read) > 1
            first = {id_ for id_ in whole.reads[figure.name] if whole.runs[id_][0].seed == 0}
            assert first == read
            # And every further seed of these cells.
            again = {id_ for id_, (spec, _) in whole.runs.items() if run_id(dataclasses.replace(spec, seed=0)) in read}
            assert whole.reads[figure.name] == again


@pytest.mark.parametrize("scale", STEPS)
def test_small_scales_have_numbers_of_their_own(scale: str):
    names = set(plan("paper", scale).figures)
    for main, small in {2: 12, 4: 13, 5: 14, 7: 15}.items():
        assert (f"figure_{main}" in names, f"figure_{small}" in names) == (scale not in SMALL, scale in SMALL)
    assert names >= {f"figure_{number}" for number in (6, 9, 10, 11, 21, 23, 25)}
    assert ("figure_16" in names, "figure_17" in names) == (scale == "10m", scale == "20m")


PLOTTED = {  # x, hue and style of each panel; y; what repeats them from left to right
    2: ([("g", "n", ""), ("n", "g", ""), ("g", "s", "")], "loss", ""),
    25: ([("g", "n", ""), ("n", "g", ""), ("g", "s", "")], "accuracy_hellaswag", ""),
    4: ([("s", "n", "kind"), ("s", "granularity", "kind")], "loss", ""),
    5: ([("s", "generalist", "wiring")], "loss", "g"),
    21: ([("s", "generalist", "wiring")], "loss", ""),
    6: ([("g", "s", "router")], "loss", "scale"),
    23: ([("g", "s", "router")], "loss", "scale"),
    7: ([("s", "balancing", "")], "loss", "g"),
    9: ([("s", "balancing", "")], "train_loss", "scale"),
    10: ([("s", "balancing", "")], "load_balancing_loss", "scale"),
    11: ([("s", "balancing", "")], "load_imbalance", "scale"),
}


@pytest.mark.parametrize("number", PLOTTED)
def test_figures_show_what_the_study_plots(number: int):
    figure = plan("paper", "50m").figures[f"figure_{number}"]
    panels = [(panel.x, panel.hue, panel.style) for panel in figure.panels]
    assert (panels, figure.y, figure.columns) == PLOTTED[number]


@pytest.mark.parametrize("scale", ["nano", "smoke"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "paper"])
def test_small_scales_resolve_and_keep_their_promise(name: str, scale: str):
    """Fewer cells, the dense model among them, and all arms of the study on some layer."""
    whole = enumerate_runs([(load_grid(name, scale), load_config(scale))], overrides={}, seeds=1)
    layers = [spec.model.layer for spec in specs(whole)]
    assert DENSE in layers
    assert len(layers) < len({run_of(spec) for spec in specs(plan(name, "10m"))})
    if name in ARMS:
        arm, count = ARMS[name]
        arms: dict[tuple, set] = {}
        for spec in specs(whole):
            arms.setdefault(_layer(spec), set()).add(arm(spec))
        assert max(map(len, arms.values())) == count
    if name == "granularity_vs_count":
        assert layers.count(DENSE) == 1
        for coordinate in ("sparsity", "granularity", "count"):
            assert len({getattr(each, coordinate) for each in layers if not each.is_dense}) > 1
