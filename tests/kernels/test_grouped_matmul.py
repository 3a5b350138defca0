"""Every implementation against the same product written out in NumPy and float64, with errors taken for each group."""

import logging
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicedice.kernels import (
    IMPLEMENTATIONS,
    choose,
    grouped_matmul,
    implementations,
    native,
    pallas_gpu,
    row_alignment,
    transposed_grouped_matmul,
)
from slicedice.kernels.reference import Gradients
from slicedice.kernels.reference import grouped_matmul as looped
from tests.kernels.contract import (
    DTYPE,
    EVERY,
    INTERPRETED,
    PLATFORM,
    TOLERANCE,
    check,
    draw,
    few_draws,
    magnitudes,
    options,
    running,
)


def computed(implementation: str, *, alignment: int = 1, preferred: str | None = None, transpose_rhs: bool = False):
    """The function under test with its gradients, compiled: (lhs, rhs, sizes, cotangent) -> `Gradients`."""

    def both(lhs, rhs, sizes, cotangent):
        def product(lhs, rhs):
            return grouped_matmul(
                lhs,
                rhs.swapaxes(1, 2) if transpose_rhs else rhs,
                sizes,
                transpose_rhs=transpose_rhs,
                implementation=implementation,
                alignment=alignment,
                preferred_element_type=preferred,
            )

        out, pull = jax.vjp(product, lhs, rhs)
        return Gradients(out, *pull(cotangent))

    def run(*arrays):
        with running(implementation):
            return jax.block_until_ready(compiled(*arrays))

    compiled = jax.jit(both, compiler_options=options(implementation))
    return run


class Product(NamedTuple):
    """A product without gradients, to be checked."""

    out: Any


def check_product(got: Any, *arrays) -> None:
    """Compares with the loop over groups."""
    check(got, looped(*arrays), magnitudes(looped, *arrays), arrays[2])


@EVERY
def test_random_shapes(implementation: str):
    wide = [] if implementation in INTERPRETED else [64, 130, 300]

    @few_draws(max_examples={"pallas_gpu": 2, "native": 40}.get(implementation, 8))
    @given(
        sizes=st.lists(st.sampled_from([0, 0, 1, 2, 7, 13, 64]), min_size=1, max_size=9),
        tail=st.sampled_from([0, 1, 11]),
        k=st.sampled_from([1, 2, 7, 16, 83, *wide]),
        n=st.sampled_from([1, 3, 8, 13, 83, *wide]),
        alignment=st.sampled_from([1, 1, 2, 8]),
        transpose_rhs=st.booleans(),
        bad=st.sampled_from([np.nan, np.inf]),
        seed=st.integers(0, 2**32 - 1),
    )
    def compare(sizes, tail, k, n, alignment, transpose_rhs, bad, seed):
        sizes = [size * alignment for size in sizes]
        rows = max(1, sum(sizes) // alignment + tail) * alignment
        dtypes = (DTYPE[implementation],) * 3
        arrays = draw(np.random.default_rng(seed), rows, k, n, sizes, tail=bad, dtypes=dtypes)
        check_product(computed(implementation, alignment=alignment, transpose_rhs=transpose_rhs)(*arrays), *arrays)

    compare()


@pytest.mark.long
@EVERY
@pytest.mark.parametrize("transpose_rhs", [False, True])
@pytest.mark.parametrize("skew", ["uniform", "zipf", "one group has all"])
def test_wide_products_of_many_rows(implementation: str, transpose_rhs: bool, skew: str, rng):
    """More rows, depth and columns than any tile or task has, none a multiple of anything."""
    if implementation == "pallas_gpu" and implementation in INTERPRETED and transpose_rhs == (skew == "zipf"):
        pytest.skip("interpreted the other way round alone: gradients pass through both")
    small = {"pallas_tpu": (300, 261, 131), "pallas_gpu": (150, 150, 131)}
    rows, k, n = small[implementation] if implementation in INTERPRETED else (1100, 523, 197)
    share = {"uniform": np.ones(7), "zipf": 1 / np.arange(1.0, 8) ** 1.5, "one group has all": np.eye(7)[4]}[skew]
    sizes = rng.permutation(rng.multinomial(rows - 5, share / share.sum()))
    arrays = draw(rng, rows, k, n, sizes, dtypes=(DTYPE[implementation],) * 3)
    check_product(computed(implementation, transpose_rhs=transpose_rhs)(*arrays), *arrays)


@EVERY
def test_empty_groups_in_every_position(implementation: str, rng):
    function = computed(implementation)
    for filled in product([0, 1], repeat=3 if implementation in INTERPRETED else 5):
        sizes = np.array(filled) * rng.integers(1, 6, len(filled))
        arrays = draw(rng, 26, 3, 4, sizes, dtypes=(DTYPE[implementation],) * 3)
        got = function(*arrays)
        np.testing.assert_array_equal(got.drhs[np.array(filled) == 0], 0.0, f"empty groups of {sizes}")
        check_product(got, *arrays)


@EVERY
def test_as_many_groups_as_there_may_be(implementation: str, rng):
    """16,384 groups, most of them empty; a few have rows, the first and the last among them."""
    sizes = np.zeros(16384, np.int32)
    sizes[[0, 16383, *rng.integers(1, 16383, 6)]] = rng.integers(1, 4, 8)
    arrays = draw(rng, 40, 3, 2, sizes, dtypes=(DTYPE[implementation],) * 3)
    if implementation in INTERPRETED:  # the weight gradient visits every group, one by one
        with running(implementation):
            out = jax.jit(lambda *x: grouped_matmul(*x, implementation=implementation))(*arrays[:3])
        got, want, scale = (Product(x.out) for x in (Product(out), looped(*arrays), magnitudes(looped, *arrays)))
        check(got, want, scale, sizes)
    else:
        check_product(computed(implementation)(*arrays), *arrays)


@EVERY
@pytest.mark.parametrize("alignment", [1, 8])
def test_what_lies_past_the_last_group_has_no_trace(implementation: str, alignment: int, rng):
    arrays = draw(rng, 56, 5, 3, [8, 0, 24, 8], tail=0.0, dtypes=(DTYPE[implementation],) * 3)
    function = computed(implementation, alignment=alignment)
    want = function(*arrays)
    inside = jnp.arange(56)[:, None] < 40
    for bad in (np.nan, -np.inf, 3e38):
        lhs, rhs, sizes, cotangent = arrays
        # The GPU's interpreter takes seconds for each.
        for place in ((bad, 0.0), (0.0, bad), (bad, bad))[-1 if implementation == "pallas_gpu" else 0 :]:
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
    check_product(got, *arrays)


@EVERY
def test_sums_are_float32_however_long(implementation: str):
    # In bfloat16, 1 added to 256 is lost: 2,048 ones would add up to 256.
    lhs, rhs = jnp.ones((2, 2048), jnp.bfloat16), jnp.ones((1, 2048, 1), jnp.bfloat16)
    long = computed(implementation, preferred="float32")
    np.testing.assert_array_equal(long(lhs, rhs, np.array([2]), jnp.ones((2, 1))).out, 2048.0)
    # As many rows in one group, for the weight gradient.
    rows, ones = lhs.T, jnp.ones((1, 2, 1), jnp.bfloat16)
    got = computed(implementation)(rows, ones, np.array([2048]), jnp.ones((2048, 1), jnp.bfloat16))
    np.testing.assert_array_equal(np.asarray(got.drhs, np.float32), 2048.0)


@EVERY
def test_the_transposed_product_and_its_gradients(implementation: str, rng):
    """lhs_g^T rhs_g; its gradients are two grouped products, and those of the rows past the last group zero."""
    lhs, matrices, sizes, rhs = draw(rng, 30, 5, 3, [4, 0, 9, 11], dtypes=(DTYPE[implementation],) * 3)
    with running(implementation):
        how: Any = {"implementation": implementation}
        out, pull = jax.vjp(lambda a, b: transposed_grouped_matmul(a, b, sizes, **how), lhs, rhs)
        dlhs, drhs = pull(matrices)
    want, scale = looped(lhs, matrices, sizes, rhs), magnitudes(looped, lhs, matrices, sizes, rhs)
    check(Gradients(drhs, dlhs, out), want, scale, sizes)


@EVERY
def test_second_derivatives(implementation: str, rng):
    """Of a sum of squares, whose gradient's gradient passes through both products again."""
    dtype = DTYPE[implementation]
    lhs, rhs, sizes, _ = draw(rng, 12, 3, 2, [5, 0, 6], tail=0.0, dtypes=(dtype,) * 3)

    def by_loop(lhs, rhs):
        group = jnp.repeat(jnp.arange(4), jnp.array([*sizes, 1]), total_repeat_length=12)
        out = jnp.einsum("mk,mkn->mn", lhs, jnp.concatenate([rhs, jnp.zeros_like(rhs[:1])])[group])
        return (out**2).sum()

    def ours(lhs, rhs):
        return squares(grouped_matmul(lhs, rhs, sizes, implementation=implementation))

    def squares(x):
        return (x.astype(jnp.float32) ** 2).sum()

    def steepness(function):
        return jax.grad(lambda *x: sum(map(squares, jax.grad(function, (0, 1))(*x))), (0, 1))

    with running(implementation):
        got = jax.block_until_ready(jax.jit(steepness(ours))(lhs, rhs))
    exact = steepness(by_loop)(lhs.astype(jnp.float32), rhs.astype(jnp.float32))
    for a, b in zip(got, exact, strict=True):
        if dtype == "float32":
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
        else:
            assert np.linalg.norm(a.astype(jnp.float32) - b) <= 2**-6 * np.linalg.norm(b)


@EVERY
def test_two_steps_of_gradient_descent(implementation: str, rng):
    """The second step meets what the first one made, with rows past the last group NaN all along."""
    dtype = DTYPE[implementation]
    lhs, rhs, sizes, target = draw(rng, 30, 5, 3, [7, 0, 12, 4], dtypes=(dtype, "float32", "float32"))
    inside = jnp.arange(30)[:, None] < 23

    @jax.jit
    def step(rhs):
        def loss(rhs):
            out = grouped_matmul(lhs, rhs.astype(dtype), sizes, implementation=implementation)
            return jnp.where(inside, out - target, 0.0).__pow__(2).sum()

        return rhs - 1e-3 * jax.grad(loss)(rhs)

    with running(implementation):
        got = jax.block_until_ready(step(step(rhs)))
    want = np.asarray(rhs, np.float64)
    scale = np.zeros_like(want)
    for _ in range(2):
        grad = np.zeros((30, 3))
        grad[:23] = 2 * (looped(lhs, want, sizes, grad).out - np.nan_to_num(np.asarray(target, np.float64)))[:23]
        steps = looped(lhs, want, sizes, grad).drhs, magnitudes(looped, lhs, want, sizes, grad).drhs
        want, scale = want - 1e-3 * steps[0], scale + 1e-3 * steps[1]
    # Matrices, results, cotangents and the gradient are rounded in every step, and the matrices kept in float32.
    tolerance = {"float32": 2 * TOLERANCE[dtype]}
    check(Product(got), Product(want), Product(scale), sizes, tolerance=tolerance, relative={"float32": 2**-22})


@EVERY
def test_inside_scan_and_checkpoint(implementation: str, rng):
    """Three layers in a scan, recomputed in the backward pass, against the same layers written out in float64."""
    sizes = jnp.array([5, 0, 9, 2])
    dtype = DTYPE[implementation]
    lhs = jnp.asarray(rng.standard_normal((16, 6)), dtype)
    rhs = jnp.asarray(rng.standard_normal((3, 4, 6, 6)) / 6**0.5, dtype)

    # The interpreters' callbacks may not be recomputed; that is shown by lowering, in tests of their own.
    checkpoint = (lambda layer: layer) if implementation in INTERPRETED else jax.checkpoint

    def scanned(rhs):
        @checkpoint
        def layer(x, matrices):
            return grouped_matmul(x, matrices, sizes, implementation=implementation), None

        return jax.lax.scan(layer, lhs, rhs)[0].sum(dtype=jnp.float32)

    with running(implementation):
        value, got = jax.block_until_ready(jax.jit(jax.value_and_grad(scanned))(rhs))
    rows = [np.asarray(lhs, np.float64)]
    for matrices in rhs:
        rows.append(looped(rows[-1], matrices, sizes, np.zeros_like(rows[-1])).out)
    np.testing.assert_allclose(value, rows[-1].sum(), rtol=0, atol=100 * TOLERANCE[dtype])
    cotangent = np.ones_like(rows[-1])
    for layer in (2, 1, 0):
        want = looped(rows[layer], rhs[layer], sizes, cotangent)
        scale = magnitudes(looped, rows[layer], rhs[layer], np.asarray(sizes), cotangent)
        for g in range(4):
            error = np.linalg.norm(got[layer, g] - want.drhs[g])
            assert error <= 10 * TOLERANCE[dtype] * np.linalg.norm(scale.drhs[g]), f"layer {layer}, group {g}"
        cotangent = want.dlhs


@EVERY
def test_no_rows_at_all(implementation: str):
    shapes, dtype = ((0, 3), (2, 3, 4), (0, 4)), DTYPE[implementation]
    lhs, rhs, cotangent = (jnp.ones(shape, dtype) for shape in shapes)
    got = computed(implementation)(lhs, rhs, np.zeros(2, np.int32), cotangent)
    assert got.out.shape == (0, 4)
    np.testing.assert_array_equal(got.drhs, np.zeros((2, 3, 4)))


@EVERY
@pytest.mark.parametrize("empty", ["G", "K", "N"])
def test_products_of_no_groups_depth_or_width(implementation: str, empty: str):
    g, k, n = (0 if axis == empty else size for axis, size in (("G", 2), ("K", 3), ("N", 4)))
    lhs, rhs, cotangent = (jnp.ones(shape, DTYPE[implementation]) for shape in ((5, k), (g, k, n), (5, n)))
    got = computed(implementation)(lhs, rhs, np.array([2, 1][:g], np.int32), cotangent)
    assert [x.shape for x in got] == [(5, n), (5, k), (g, k, n)]
    assert not any(np.any(x) for x in got)


@pytest.mark.parametrize("sizes", [jnp.ones(3), jnp.ones(3, bool), jnp.ones((3, 1), int)])
def test_group_sizes_that_are_no_list_of_whole_numbers(sizes):
    with pytest.raises(ValueError, match=r"group_sizes .* (have to be whole numbers|do not fit)"):
        grouped_matmul(jnp.ones((8, 2)), jnp.ones((3, 2, 2)), sizes)


@pytest.mark.parametrize(
    ("sizes", "alignment", "rows", "message"),
    [
        ([3, -1, 2], 1, 8, r"-1.*at least 0"),
        ([3, 3, 3], 1, 8, r"3 3 3.*at most M = 8"),
        ([4, 2, 0], 4, 8, r"4 2 0.*multiples of alignment = 4"),
        ([4, 0, 4], 4, 9, r"M = 9.*multiples of alignment = 4"),
        ([4, 0, 4], 0, 8, r"alignment = 0 has to be at least 1"),
    ],
)
def test_bad_group_sizes(sizes, alignment: int, rows: int, message: str):
    with pytest.raises(ValueError, match=message):
        grouped_matmul(jnp.ones((rows, 2)), jnp.ones((3, 2, 2)), jnp.array(sizes), alignment=alignment)
    with pytest.raises(ValueError, match=message):
        transposed_grouped_matmul(jnp.ones((rows, 2)), jnp.ones((rows, 3)), jnp.array(sizes), alignment=alignment)


@pytest.mark.parametrize(
    ("lhs", "rhs", "groups"),
    [((8,), (3, 2, 2), 3), ((8, 2), (2, 2), 3), ((8, 2), (3, 3, 2), 3), ((8, 2), (3, 2, 2), 4)],
)
def test_shapes_that_do_not_fit(lhs, rhs, groups: int):
    with pytest.raises(ValueError, match=r"do not fit \[M, K\], \[G, K, N\], \[G\]"):
        grouped_matmul(jnp.ones(lhs), jnp.ones(rhs), jnp.zeros(groups, int))


def test_transposed_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"do not fit \[M, K\], \[G, N, K\], \[G\]"):
        grouped_matmul(jnp.ones((8, 2)), jnp.ones((3, 2, 5)), jnp.zeros(3, int), transpose_rhs=True)
    with pytest.raises(ValueError, match=r"do not fit \[M, K\], \[M, N\], \[G\]"):
        transposed_grouped_matmul(jnp.ones((8, 2)), jnp.ones((7, 5)), jnp.zeros(3, int))


def test_unknown_implementation():
    message = f"implementation = 'dense': choose one of {', '.join(IMPLEMENTATIONS)}"
    with pytest.raises(ValueError, match=message):
        grouped_matmul(jnp.ones((1, 1)), jnp.ones((1, 1, 1)), jnp.ones(1, int), implementation="dense")
    with pytest.raises(ValueError, match=message):
        row_alignment(8, 2, "dense")


def test_the_platform_chooses_and_the_log_says_so_once(caplog, monkeypatch):
    implementations._say.cache_clear()
    for passes, on_gpu in ((True, "pallas_gpu"), (False, "blocks")):
        monkeypatch.setattr(pallas_gpu, "available", lambda passes=passes: passes)
        for platform, name in (("tpu", "pallas_tpu"), ("gpu", on_gpu)):
            with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "slicedice"):
                patch.setattr(jax, "default_backend", lambda platform=platform: platform)
                for _ in range(3):
                    assert choose() == name
    said = [message for message in caplog.messages if "grouped matmul on" in message]
    assert sorted(said) == [f"grouped matmul on {on}" for on in ("gpu: blocks", "gpu: pallas_gpu", "tpu: pallas_tpu")]


@pytest.mark.skipif(PLATFORM != "cpu", reason="what CPUs run")
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

        def both(lhs, rhs, sizes, cotangent, alignment=alignment):
            how = {"implementation": "blocks", "alignment": alignment}
            out, pull = jax.vjp(lambda a, b: grouped_matmul(a, b, sizes, **how), lhs, rhs)
            return out, pull(cotangent)

        compiled = jax.jit(both).lower(*shapes).compile()
        # Three products: the result and two gradients.
        flops = (compiled.cost_analysis() or {})["flops"]
        assert 3 * one <= flops <= 2 * 3 * one
