import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slicedice.grid import axis, chain, each, product, where, zip_


def test_axis():
    assert axis("g", ["1", "1/2"]) == [{"g": "1"}, {"g": "1/2"}]
    assert axis("g", (x for x in "ab")) == [{"g": "a"}, {"g": "b"}]
    assert axis("g", []) == []


def test_chain_keeps_order_and_repetitions():
    assert chain(axis("a", [2, 1]), [], axis("b", [3]), axis("a", [2])) == [{"a": 2}, {"a": 1}, {"b": 3}, {"a": 2}]


@settings(database=None, deadline=None)
@given(sizes=st.lists(st.integers(0, 4), max_size=4))
def test_product_turns_the_last_grid_fastest(sizes: list[int]):
    points = product(*(axis(f"x{i}", range(size)) for i, size in enumerate(sizes)))
    want = [{}]
    for i, size in enumerate(sizes):
        want = [{**point, f"x{i}": value} for point in want for value in range(size)]
    assert points == want


def test_zip_pairs_points():
    assert zip_(axis("a", [1, 2]), axis("b", [3, 4]), [{"c": 5, "d": 6}, {}]) == [
        {"a": 1, "b": 3, "c": 5, "d": 6},
        {"a": 2, "b": 4},
    ]


def test_zip_refuses_grids_of_different_lengths():
    with pytest.raises(ValueError, match="shorter"):
        zip_(axis("a", [1, 2]), axis("b", [3]))


@pytest.mark.parametrize("combine", [product, zip_])
def test_a_name_is_set_once(combine):
    with pytest.raises(ValueError, match="two grids set a, b: combine grids that set different names"):
        combine([{"a": 1, "b": 2, "c": 3}], [{"b": 2, "a": 1, "d": 4}])


def test_where_and_each():
    grid = product(axis("s", [1, 2]), axis("g", [1, 4]))
    assert where(grid, lambda s, g: s * g > 1) == [{"s": 1, "g": 4}, {"s": 2, "g": 1}, {"s": 2, "g": 4}]
    assert each(grid, lambda s, g: {"n": s * g}) == [{"n": 1}, {"n": 4}, {"n": 2}, {"n": 8}]
    assert where(axis("router.gamma", [0, 1]), lambda **point: point["router.gamma"]) == [{"router.gamma": 1}]


def test_combining_leaves_grids_alone():
    a, b = axis("a", [1]), axis("b", [2])
    for points in (product(a, b), zip_(a, b), chain(a, b), each(a, lambda a: {"a": a}), where(a, lambda a: True)):
        points[0]["c"] = 3
        points.append({})
    assert b == [{"b": 2}]
    assert len(a) == 1
