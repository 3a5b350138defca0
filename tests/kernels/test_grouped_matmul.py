"""Every implementation against a loop over groups in float64, with errors taken for each group."""

from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from slicedice.kernels import IMPLEMENTATIONS, choose, grouped_matmul, native, row_alignment

ON_CPU = jax.default_backend() == "cpu"
NO_NATIVE = pytest.mark.skipif(not (ON_CPU and native.available()), reason="needs the CPU and a C++ compiler")
EVERY = pytest.mark.parametrize(
    "implementation",
    [pytest.param(name, marks=NO_NATIVE if name == "native" else ()) for name in IMPLEMENTATIONS],
)
# Of one product summed in float32, and of one rounding to bfloat16.
TOLERANCE = {"float32": 1e-6, "bfloat16": 2**-8}


class Product(NamedTuple):
    """A product and its gradients, [M, N], [M, K] and [G, K, N]."""

    out: Any
    dlhs: Any
    drhs: Any


def computed(implementation: str, alignment: int = 1, preferred: str | None = None) -> Any:
    """The function under test with its gradients, compiled: (lhs, rhs, sizes, cotangent) -> `Product`."""

    def both(lhs, rhs, sizes, cotangent):
        def product(lhs, rhs):
            return grouped_matmul(
                lhs,
                rhs,
                sizes,
                implementation=implementation,
                alignment=alignment,
                preferred_element_type=preferred,
            )

        out, pull = jax.vjp(product, lhs, rhs)
        return Product(out, *pull(cotangent))

    return jax.jit(both)


def looped(lhs, rhs, sizes, cotangent) -> tuple[Product, Product]:
    """The same in float64, group by group, and the sums of magnitudes that rounding errors grow with."""
    lhs, rhs, cotangent = (np.asarray(x, np.float64) for x in (lhs, rhs, cotangent))
    want = Product(np.zeros_like(cotangent), np.zeros_like(lhs), np.zeros_like(rhs))
    scale = Product(*map(np.zeros_like, want))
    start = 0
    for g, size in enumerate(np.asarray(sizes)):
        rows = slice(start, start := start + int(size))
        for into, a, b, c in ((want, lhs, rhs, cotangent), (scale, abs(lhs), abs(rhs), abs(cotangent))):
            into.out[rows] = a[rows] @ b[g]
            into.dlhs[rows] = c[rows] @ b[g].T
            into.drhs[g] = a[rows].T @ c[rows]
    return want, scale


def check(got: Product, lhs, rhs, sizes, cotangent) -> None:
    """Asserts that every group's error is that of its dtype's rounding, and that all else is exactly zero."""
    want, scale = looped(lhs, rhs, sizes, cotangent)
    ends = np.cumsum(sizes)
    for name, values in got._asdict().items():
        tolerance = TOLERANCE[str(values.dtype)]
        values, exact, size = (np.asarray(getattr(x, name), np.float64) for x in (got, want, scale))
        for g, end in enumerate(ends):
            part = g if name == "drhs" else slice(end - sizes[g], end)
            error, most = np.linalg.norm(values[part] - exact[part]), np.linalg.norm(size[part])
            assert error <= tolerance * most, f"{name} of group {g}: relative error {error / most:.2g}"
        if name != "drhs":
            np.testing.assert_array_equal(values[ends[-1] :], 0.0, f"{name} past the last group")


def draw(rng: np.random.Generator, rows: int, k: int, n: int, sizes, *, tail: float = np.nan, dtypes=("float32",) * 3):
    """Unit-scale (lhs, rhs, sizes, cotangent), rows past the last group of lhs and cotangent being `tail`."""
    sizes = np.asarray(sizes, np.int32)
    shapes = ((rows, k), (sizes.size, k, n), (rows, n))
    lhs, rhs, cotangent = (jnp.asarray(rng.standard_normal(s), dtype) for s, dtype in zip(shapes, dtypes, strict=True))
    inside = jnp.arange(rows)[:, None] < sizes.sum()
    return jnp.where(inside, lhs, tail), rhs, sizes, jnp.where(inside, cotangent, tail)


@EVERY
@settings(max_examples=8, deadline=None, database=None, phases=[Phase.generate])  # shrinking would compile for minutes
@given(
    sizes=st.lists(st.sampled_from([0, 0, 1, 2, 7, 13, 64]), min_size=1, max_size=9),
    tail=st.sampled_from([0, 1, 11]),
    k=st.sampled_from([1, 2, 7, 16, 83]),
    n=st.sampled_from([1, 3, 8, 13, 83]),
    alignment=st.sampled_from([1, 1, 2, 8]),
    bad=st.sampled_from([np.nan, np.inf]),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_shapes(implementation: str, sizes, tail, k, n, alignment, bad, seed):
    sizes = [size * alignment for size in sizes]
    rows = max(1, sum(sizes) // alignment + tail) * alignment
    arrays = draw(np.random.default_rng(seed), rows, k, n, sizes, tail=bad)
    check(computed(implementation, alignment)(*arrays), *arrays)


@EVERY
def test_empty_groups_in_every_position(implementation: str, rng):
    function = computed(implementation)
    for filled in product([0, 1], repeat=5):
        sizes = np.array(filled) * rng.integers(1, 6, 5)
        arrays = draw(rng, 26, 3, 4, sizes)
        got = function(*arrays)
        np.testing.assert_array_equal(got.drhs[np.array(filled) == 0], 0.0, f"empty groups of {sizes}")
        check(got, *arrays)


@EVERY
@pytest.mark.parametrize("alignment", [1, 8])
def test_what_lies_past_the_last_group_has_no_trace(implementation: str, alignment: int, rng):
    arrays = draw(rng, 56, 5, 3, [8, 0, 24, 8], tail=0.0)
    function = computed(implementation, alignment)
    want = function(*arrays)
    inside = jnp.arange(56)[:, None] < 40
    for bad in (np.nan, -np.inf, 3e38):
        lhs, rhs, sizes, cotangent = arrays
        for place in ((bad, 0.0), (0.0, bad), (bad, bad)):
            got = function(jnp.where(inside, lhs, place[0]), rhs, sizes, jnp.where(inside, cotangent, place[1]))
            jax.tree.map(np.testing.assert_array_equal, got, want)


@EVERY
@pytest.mark.parametrize(
    ("lhs", "rhs", "preferred", "out"),
    [
        ("bfloat16", "bfloat16", None, "bfloat16"),
        ("bfloat16", "bfloat16", "float32", "float32"),
        ("bfloat16", "float32", None, "bfloat16"),
        ("float32", "bfloat16", None, "float32"),
        ("float32", "float32", "bfloat16", "bfloat16"),
    ],
)
def test_dtypes(implementation: str, lhs: str, rhs: str, preferred: str | None, out: str, rng):
    arrays = draw(rng, 50, 13, 7, [19, 0, 1, 23], dtypes=(lhs, rhs, out))
    got = computed(implementation, preferred=preferred)(*arrays)
    assert [str(x.dtype) for x in got] == [out, lhs, rhs]
    check(got, *arrays)


@EVERY
def test_sums_are_float32_however_long(implementation: str, rng):
    # In bfloat16, 1 added to 256 is lost: 2,048 ones would add up to 256.
    lhs, rhs = jnp.ones((2, 2048), jnp.bfloat16), jnp.ones((1, 2048, 1), jnp.bfloat16)
    long = computed(implementation, preferred="float32")
    np.testing.assert_array_equal(long(lhs, rhs, np.array([2]), jnp.ones((2, 1))).out, 2048.0)
    # As many rows in one group, for the weight gradient.
    got = long(lhs.T, jnp.ones((1, 2, 1), jnp.bfloat16), np.array([2048]), jnp.ones((2048, 1)))
    np.testing.assert_array_equal(np.asarray(got.drhs, np.float32), 2048.0)


@EVERY
def test_inside_scan_and_checkpoint(implementation: str, rng):
    """Three layers in a scan, recomputed in the backward pass, against the same layers written out in float64."""
    sizes = jnp.array([5, 0, 9, 2])
    lhs = jnp.asarray(rng.standard_normal((16, 6)), jnp.float32)
    rhs = jnp.asarray(rng.standard_normal((3, 4, 6, 6)) / 6**0.5, jnp.float32)

    def scanned(rhs):
        @jax.checkpoint
        def layer(x, matrices):
            return grouped_matmul(x, matrices, sizes, implementation=implementation), None

        return jax.lax.scan(layer, lhs, rhs)[0].sum()

    value, got = jax.jit(jax.value_and_grad(scanned))(rhs)
    rows = [np.asarray(lhs, np.float64)]
    for matrices in rhs:
        rows.append(looped(rows[-1], matrices, sizes, np.zeros_like(rows[-1]))[0].out)
    np.testing.assert_allclose(value, rows[-1].sum(), rtol=0, atol=1e-4)
    cotangent = np.ones_like(rows[-1])
    for layer in (2, 1, 0):
        want, scale = looped(rows[layer], rhs[layer], sizes, cotangent)
        for g in range(4):
            error = np.linalg.norm(got[layer, g] - want.drhs[g])
            assert error <= 1e-5 * np.linalg.norm(scale.drhs[g]), f"layer {layer}, group {g}"
        cotangent = want.dlhs


@EVERY
def test_under_vmap(implementation: str, rng):
    """Each member of the batch has group sizes of its own, one of them a NaN tail."""
    members = [draw(rng, 24, 5, 3, sizes) for sizes in ([3, 0, 21, 0], [0, 7, 1, 2], [0, 0, 0, 0])]
    batched = jax.jit(jax.vmap(computed(implementation)))(*(jnp.stack(x) for x in zip(*members, strict=True)))
    for i, arrays in enumerate(members):
        check(Product(*(x[i] for x in batched)), *arrays)


@EVERY
def test_no_rows_at_all(implementation: str):
    got = computed(implementation)(jnp.zeros((0, 3)), jnp.ones((2, 3, 4)), np.zeros(2, np.int32), jnp.zeros((0, 4)))
    assert got.out.shape == (0, 4)
    np.testing.assert_array_equal(got.drhs, np.zeros((2, 3, 4)))


@pytest.mark.parametrize(
    ("sizes", "alignment", "rows", "message"),
    [
        ([3, -1, 2], 1, 8, r"-1.*at least 0"),
        ([3, 3, 3], 1, 8, r"3 3 3.*at most M = 8"),
        ([4, 2, 0], 4, 8, r"4 2 0.*multiples of alignment = 4"),
        ([4, 0, 4], 4, 9, r"M = 9.*multiples of alignment = 4"),
    ],
)
def test_bad_group_sizes(sizes, alignment: int, rows: int, message: str):
    with pytest.raises(ValueError, match=message):
        grouped_matmul(jnp.ones((rows, 2)), jnp.ones((3, 2, 2)), jnp.array(sizes), alignment=alignment)


@pytest.mark.parametrize(
    ("lhs", "rhs", "groups"),
    [((8,), (3, 2, 2), 3), ((8, 2), (2, 2), 3), ((8, 2), (3, 3, 2), 3), ((8, 2), (3, 2, 2), 4)],
)
def test_shapes_that_do_not_fit(lhs, rhs, groups: int):
    with pytest.raises(ValueError, match=r"do not fit \[M, K\], \[G, K, N\], \[G\]"):
        grouped_matmul(jnp.ones(lhs), jnp.ones(rhs), jnp.zeros(groups, int))


def test_unknown_implementation():
    message = f"implementation = 'dense': choose one of {', '.join(IMPLEMENTATIONS)}"
    with pytest.raises(ValueError, match=message):
        grouped_matmul(jnp.ones((1, 1)), jnp.ones((1, 1, 1)), jnp.ones(1, int), implementation="dense")
    with pytest.raises(ValueError, match=message):
        row_alignment(8, 2, "dense")


@pytest.mark.skipif(not ON_CPU, reason="what CPUs run")
def test_what_cpus_run_costs_flops_in_proportion_to_rows():
    """XLA's own would cost 32 times as many here, a product for each group."""
    assert choose() == ("native" if native.available() else "blocks")
    m, k, n, groups = 1024, 16, 32, 32
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in [((m, k), "f4"), ((groups, k, n), "f4"), ((groups,), "i4"), ((m, n), "f4")]
    ]
    one = 2 * m * k * n
    for alignment in (1, row_alignment(m, groups, "blocks")):
        compiled = computed("blocks", alignment).lower(*shapes).compile()
        # Three products: the result and two gradients.
        assert 3 * one <= compiled.cost_analysis()["flops"] <= 2 * 3 * one
