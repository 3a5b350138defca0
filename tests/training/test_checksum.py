"""Checksums of arrays: the same wherever an array lies, and another one whenever a number of it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slicedice.training import checksum
from slicedice.training.checksum import NAME, changed, checksums

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8"]


@pytest.fixture(params=["in memory", "compiled"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How sums are computed: where a CPU can read the arrays, and on any device."""
    if request.param == "compiled":
        monkeypatch.setattr(checksum, "_in_memory", lambda leaf: False)
    return request.param


def draw(rng: np.random.Generator, dtype: str, shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    """Any bits: also what is no number, and zeros of both signs."""
    kind = np.dtype(jnp.dtype(dtype))
    return np.frombuffer(rng.bytes(kind.itemsize * int(np.prod(shape))), kind).reshape(shape)


def flipped(x: np.ndarray, place: int, bit: int) -> np.ndarray:
    content = bytearray(x.tobytes())
    content[place] ^= 1 << bit
    return np.frombuffer(bytes(content), x.dtype).reshape(x.shape)


def saved(**arrays: np.ndarray) -> dict[str, jax.Array]:
    leaves = {name: jnp.asarray(x) for name, x in arrays.items()}
    return leaves | {NAME: checksums(leaves)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_is_noticed(dtype: str, rng: np.random.Generator):
    x = draw(rng, dtype, (3, 4))
    leaves = saved(x=x, y=x)
    assert changed(leaves) == []
    for place in range(x.nbytes):
        assert changed(leaves | {"y": jnp.asarray(flipped(x, place, int(rng.integers(8))))}) == ["y"]


def test_several_changes_do_not_make_up_for_each_other(rng: np.random.Generator):
    """As they would in a plain sum: two signs, two numbers that have changed places, rows that moved, zeros."""
    x = draw(rng, "uint32", (8, 16)).view(np.float32)
    leaves = saved(x=x)
    signs, places, constant = x.copy(), x.copy(), x.copy()
    signs.view(np.uint32)[2, 3:5] ^= 1 << 31
    places[0, :2] = x[0, 1::-1]
    constant[5] = 0
    for other in (signs, places, constant, x[::-1].copy(), np.roll(x, 1), x.T.reshape(x.shape), np.zeros_like(x)):
        assert changed(leaves | {"x": jnp.asarray(other)}) == ["x"]


def test_names_and_places_of_arrays_count(rng: np.random.Generator):
    a, b = draw(rng, "uint32"), draw(rng, "uint32")
    leaves = saved(a=a, b=b, c=a)
    assert changed(leaves | {"a": leaves["b"], "b": leaves["a"]}) == ["a", "b"]
    assert changed(dict(reversed(leaves.items()))) == [], "the order in which they come does not"


def test_a_damaged_checksum_is_noticed(rng: np.random.Generator):
    leaves = saved(a=draw(rng, "float32"), b=draw(rng, "int32"))
    for place, name in enumerate("ab"):
        assert changed(leaves | {NAME: leaves[NAME].at[place].add(1)}) == [name]


def test_checkpoints_of_earlier_versions_keep_theirs():
    assert checksums({"x": jnp.arange(12, dtype=jnp.float32).reshape(3, 4)}).tolist() == [3147158417]


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_the_same_both_ways(dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
    """Of arrays longer than what is mixed at a time, too: a checkpoint may come from another kind of device."""
    monkeypatch.setattr(checksum, "AT_ONCE", 100)
    leaves = {
        name: jnp.asarray(draw(rng, dtype, shape)) for name, shape in {"a": (9, 9, 9), "b": (), "c": (300,)}.items()
    }
    sums = []
    for is_in_memory in (True, False):
        monkeypatch.setattr(checksum, "_in_memory", lambda leaf, is_=is_in_memory: is_)
        sums.append(np.asarray(checksums(leaves)))
    np.testing.assert_array_equal(*sums)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (1, 1, 1, 1)])
def test_arrays_of_any_shape_have_one(shape: tuple[int, ...], rng: np.random.Generator):
    x = draw(rng, "float32", shape)
    leaves = saved(x=x)
    assert leaves[NAME].shape == (1,)
    assert changed(leaves) == []
    if x.size:
        assert changed(leaves | {"x": jnp.asarray(flipped(x, 0, 7))}) == ["x"]


def test_zeros_of_other_places_are_other_zeros():
    """Else a row too few would not show where there is little but zeros, as in a fresh optimizer's state."""
    sizes = (1, 2, 3, 4, 50)
    assert len({int(checksums({"x": jnp.zeros(size)})[0]) for size in sizes}) == len(sizes)


@pytest.mark.parametrize("spec", [("a",), (None, "a"), ("b", "a"), (("a", "b"),), ()])
def test_they_are_the_same_on_every_mesh(spec: tuple, rng: np.random.Generator):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x, y = draw(rng, "float32", (8, 4)), draw(rng, "bfloat16", (16, 8))
    leaves = saved(x=x, y=y)
    where = NamedSharding(mesh, PartitionSpec(*spec))
    whole = NamedSharding(mesh, PartitionSpec())
    there = {name: jax.device_put(leaf, where) for name, leaf in leaves.items() if name != NAME}
    np.testing.assert_array_equal(checksums(there), leaves[NAME])
    assert changed(there | {NAME: jax.device_put(leaves[NAME], whole)}) == []
    other = jax.device_put(flipped(x, 77, 2), where)
    assert changed(there | {"x": other, NAME: jax.device_put(leaves[NAME], whole)}) == ["x"]
