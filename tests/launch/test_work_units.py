"""How runs are cut into work units."""

import itertools
import math

import numpy as np
import pytest

from slicedice.launching import WorkUnit
from slicedice.launching.units import work_units
from slicedice.spec import program_key, run_id

FIELDS = [
    {},
    {"model.experts": "n=4 g=1/2"},
    {"optimizer.learning_rate": 1e-2},
    {"execution.mesh": "data=2", "optimizer.learning_rate": 3e-2},
]


@pytest.fixture(scope="module")
def points(tiny):
    """Runs of three programs, by id: seeds outermost, as grids enumerate them."""
    points = [tiny({**fields, "seed": seed}) for seed in range(4) for fields in FIELDS]
    assert len({program_key(*point) for point in points}) == 3
    return {run_id(spec): (spec, execution) for spec, execution in points}


def test_runs_of_a_program_are_together_in_order(points):
    units = work_units(points, dict.fromkeys(points, 1.0), math.inf)
    ids = list(points)
    both = [id_ for id_ in ids if ids.index(id_) % 4 in (0, 2)]  # they differ in a learning rate alone
    assert units == (
        WorkUnit(tuple(both), 1, 8.0),
        WorkUnit(tuple(ids[1::4]), 1, 4.0),
        WorkUnit(tuple(ids[3::4]), 2, 4.0),
    )


def test_a_unit_takes_no_longer_than_it_may(points):
    seconds = dict.fromkeys(points, 100.0)
    units = work_units(points, seconds, 300.0)
    assert [len(unit.runs) for unit in units] == [3, 3, 3, 3, 2, 1, 1]
    assert [unit.seconds for unit in units] == [300, 300, 300, 300, 200, 100, 100]
    firsts = [list(points).index(unit.runs[0]) for unit in units]
    assert firsts == sorted(firsts), "what comes first is trained first"


def test_a_run_that_takes_longer_is_one_alone(points):
    ids = list(points)
    seconds = {id_: 1000.0 if id_ == ids[5] else 100.0 for id_ in ids}
    units = [unit for unit in work_units(points, seconds, 300.0) if set(unit.runs) & set(ids[1::4])]
    assert [unit.runs for unit in units] == [(ids[1],), (ids[5],), (ids[9], ids[13])]


def test_whatever_runs_take_each_is_in_one_unit(points, rng: np.random.Generator):
    ids = list(rng.permutation(list(points)))
    runs = {str(id_): points[id_] for id_ in ids}
    seconds = {id_: float(rng.exponential(100)) for id_ in runs}
    units = work_units(runs, seconds, 250.0)
    assert sorted(id_ for unit in units for id_ in unit.runs) == sorted(runs)
    order = {id_: place for place, id_ in enumerate(runs)}
    for unit in units:
        places = [order[id_] for id_ in unit.runs]
        assert places == sorted(places)
        assert len({program_key(*runs[id_]) for id_ in unit.runs}) == 1
        total = sum(seconds[id_] for id_ in unit.runs)
        assert unit.seconds == pytest.approx(total)
        assert total <= 250 or len(unit.runs) == 1
        assert unit.devices == runs[unit.runs[0]][1].mesh_shape.devices
    # Nor are there more than have to be: what begins a unit had no room in the one of its program before.
    for key in {program_key(*run) for run in runs.values()}:
        mine = [unit for unit in units if program_key(*runs[unit.runs[0]]) == key]
        for before, after in itertools.pairwise(mine):
            assert before.seconds is not None
            assert before.seconds + seconds[after.runs[0]] > 250


def test_of_nothing_there_are_none():
    assert work_units({}, {}, 100.0) == ()
