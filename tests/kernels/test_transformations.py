"""Independent models under `jax.vmap` become one call of more groups; and what `jax.shard_map` makes of a product."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.kernels import expert_ffn, grouped_matmul, native, reference
from slicedice.kernels.groups import Groups
from tests.kernels import test_expert_ffn as ffn
from tests.kernels.contract import DTYPE, EVERY, PLATFORM, check, draw, magnitudes, running

SIZES = ([3, 0, 18, 0], [0, 7, 1, 2], [0, 0, 0, 0])
CLOSE = {"float32": 1e-5, "bfloat16": 2**-6}
"""Of errors of an array as a whole, relative to its size, where a few products are roundings' only source."""


def gradients(implementation: str):
    def both(lhs, rhs, sizes, cotangent):
        out, pull = jax.vjp(lambda a, b: grouped_matmul(a, b, sizes, implementation=implementation), lhs, rhs)
        return reference.Gradients(out, *pull(cotangent))

    return both


@EVERY
def test_each_model_is_its_own_product(implementation: str, rng):
    """Each has group sizes of its own and a tail of NaN, between which and the next model's rows nothing leaks."""
    members = [draw(rng, 24, 5, 3, sizes, dtypes=(DTYPE[implementation],) * 3) for sizes in SIZES]
    with running(implementation):
        function = jax.jit(jax.vmap(gradients(implementation)))
        batched = jax.block_until_ready(function(*map(jnp.stack, zip(*members, strict=True))))
    for i, arrays in enumerate(members):
        got = reference.Gradients(*(x[i] for x in batched))
        check(got, reference.grouped_matmul(*arrays), magnitudes(reference.grouped_matmul, *arrays), np.array(SIZES[i]))


@EVERY
def test_a_model_that_has_diverged_is_alone(implementation: str, rng):
    """NaN in a model's matrices, and in an empty group's, reaches no row of another model or group."""
    if implementation == "ragged_dot":
        pytest.skip("XLA's own multiplies every row with every matrix on CPU")
    members = [draw(rng, 24, 5, 3, sizes, dtypes=(DTYPE[implementation],) * 3) for sizes in SIZES[:2]]
    lhs, rhs, sizes, cotangent = map(jnp.stack, zip(*members, strict=True))
    rhs = rhs.at[1].set(jnp.nan).at[0, 1].set(jnp.nan).at[0, 3].set(jnp.nan)
    with running(implementation):
        got = jax.block_until_ready(jax.jit(jax.vmap(gradients(implementation)))(lhs, rhs, sizes, cotangent))
    want = reference.grouped_matmul(lhs[0], jnp.nan_to_num(rhs[0]), SIZES[0], cotangent[0])
    own = reference.Gradients(*(x[0] for x in got))
    check(own, want, magnitudes(reference.grouped_matmul, lhs[0], rhs[0], np.array(SIZES[0]), cotangent[0]), SIZES[0])
    np.testing.assert_array_equal(got.out[1, sum(SIZES[1]) :], 0.0)


@EVERY
def test_experts_of_each_model(implementation: str, rng):
    members = [ffn.draw(rng, 24, 5, 3, sizes, dtype=DTYPE[implementation]) for sizes in SIZES]

    def both(rows, gate, up, down, sizes, grad):
        def ffn(rows, gate, up, down):
            return expert_ffn(rows, gate, up, down, sizes, implementation=implementation)

        out, pull = jax.vjp(ffn, rows, gate, up, down)
        return reference.FFNGradients(out, *pull(grad))

    with running(implementation):
        batched = jax.block_until_ready(jax.jit(jax.vmap(both))(*map(jnp.stack, zip(*members, strict=True))))
    for i, arrays in enumerate(members):
        ffn.check(reference.FFNGradients(*(x[i] for x in batched)), *arrays, rounding=ffn.ROUNDING_OF_FEW)


@pytest.mark.parametrize(
    "implementation",
    [
        "blocks",
        pytest.param(
            "native",
            marks=pytest.mark.skipif(PLATFORM != "cpu" or not native.available(), reason="needs the CPU and C++"),
        ),
    ],
)
def test_models_of_models_that_share_rows_or_matrices(implementation: str, rng):
    """Two nested maps; rows differ along the outer alone, matrices along the inner alone."""
    function = jax.jit(gradients(implementation))
    lhs, rhs, sizes, cotangent = draw(rng, 24, 5, 3, SIZES[0])
    rows, matrices = jnp.stack([lhs, 2 * lhs]), jnp.stack([rhs, -rhs, rhs + 1])
    inner = jax.vmap(gradients(implementation), (None, 0, None, None))
    got = jax.jit(jax.vmap(inner, (0, None, None, None)))(rows, matrices, sizes, cotangent)
    for i in range(2):
        for j in range(3):
            want = function(rows[i], matrices[j], sizes, cotangent)
            jax.tree.map(lambda a, b, i=i, j=j: np.testing.assert_allclose(a[i, j], b, rtol=1e-6, atol=1e-6), got, want)


@EVERY
def test_products_that_share_matrices(implementation: str, rng):
    """Several batches of one model: as each by itself, with NaN between them, and between groups there are none."""
    members = [draw(rng, 24, 5, 3, sizes, dtypes=(DTYPE[implementation],) * 3) for sizes in SIZES]
    lhs, _, sizes, cotangent = map(jnp.stack, zip(*members, strict=True))
    rhs = members[0][1]
    with running(implementation):
        function = jax.jit(jax.vmap(gradients(implementation), (0, None, 0, 0)))
        mapped = jax.block_until_ready(function(lhs, rhs, sizes, cotangent))
    for i, (own, _, own_sizes, grad) in enumerate(members):
        arrays = own, rhs, own_sizes, grad
        got = reference.Gradients(*(x[i] for x in mapped))
        check(got, reference.grouped_matmul(*arrays), magnitudes(reference.grouped_matmul, *arrays), np.array(SIZES[i]))


@EVERY
def test_experts_that_share_matrices(implementation: str, rng):
    members = [ffn.draw(rng, 24, 5, 3, sizes, dtype=DTYPE[implementation]) for sizes in SIZES]
    matrices = members[0][1:4]
    rows, sizes, grads = (jnp.stack([member[i] for member in members]) for i in (0, 4, 5))

    def mapped(rows, gate, up, down):
        def one(rows, sizes):
            return expert_ffn(rows, gate, up, down, sizes, implementation=implementation)

        return jax.vmap(one)(rows, sizes)

    def both(rows, gate, up, down, grads):
        out, pull = jax.vjp(mapped, rows, gate, up, down)
        return out, pull(grads)

    with running(implementation):
        out, (drows, *dmatrices) = jax.block_until_ready(jax.jit(both)(rows, *matrices, grads))
    want = [reference.expert_ffn(row, *matrices, *member[4:]) for row, member in zip(rows, members, strict=True)]
    for i in range(len(members)):
        assert_close(out[i], want[i].out)
        assert_close(drows[i], want[i].drows)
    for got, of_each in zip(dmatrices, zip(*(w[2:] for w in want), strict=True), strict=True):
        assert_close(got, sum(of_each))


def assert_close(got: Any, want: Any, most: dict[str, float] = CLOSE) -> None:
    error = np.linalg.norm(np.asarray(got, np.float64) - np.asarray(want, np.float64))
    assert error <= most[str(got.dtype)] * np.linalg.norm(np.asarray(want, np.float64))


def broadcast_shapes(jaxpr: Any) -> list[tuple[int, ...]]:
    """Of all arrays that a program makes copies of, in the programs within it too."""
    shapes = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "broadcast_in_dim":
            before, after = equation.invars[0].aval, equation.outvars[0].aval
            shapes += [before.shape] * (after.size > before.size)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                shapes += broadcast_shapes(inner)
    return shapes


@pytest.mark.parametrize("implementation", ["blocks", "ragged_dot"])
def test_shared_matrices_are_not_copied(implementation: str):
    """In both directions; of shared rows, which are, the search for copies knows."""
    rows, sizes, up, down = jnp.ones((3, 24, 5)), jnp.ones((3, 4), int), jnp.ones((4, 5, 7)), jnp.ones((4, 7, 5))

    def product(rows, up, sizes):
        return grouped_matmul(rows, up, sizes, implementation=implementation)

    def experts(rows, up, down, sizes):
        return expert_ffn(rows, up, up, down, sizes, implementation=implementation)

    def copied(function, axes, *args):
        def both(*args):
            out, pull = jax.vjp(lambda *args: jax.vmap(function, axes)(*args, sizes), *args)
            return out, pull(out)

        return broadcast_shapes(jax.make_jaxpr(both)(*args).jaxpr)

    for function, axes, matrices in ((product, (0, None, 0), (up,)), (experts, (0, None, None, 0), (up, down))):
        shapes = copied(function, axes, rows, *matrices)
        assert not {(4, 5, 7), (4, 7, 5)} & set(shapes), f"{function.__name__} copies matrices"
    # Each of these is one that would be.
    assert (24, 5) in copied(product, (None, 0, 0), rows[0], jnp.stack([up] * 3))
    assert (4, 5, 7) in copied(experts, (0, None, 0, 0), rows, up, jnp.stack([down] * 3))


def test_one_call_of_more_groups(monkeypatch):
    """And no loop over models: an implementation is asked once for each direction, with three models' groups."""
    asked: list[tuple[Any, ...]] = []

    def spy(name, shape):
        def function(lhs, rhs, groups: Groups, **how):
            asked.append((name, lhs.shape, groups.sizes.shape, groups.members, groups.alignment))
            return jnp.zeros(shape(lhs, rhs, groups, **how), how["dtype"])

        return function

    seen = SimpleNamespace(
        NEEDS_ZEROS=False,
        gmm=spy("gmm", lambda lhs, rhs, groups, **how: (lhs.shape[0], rhs.shape[1 if how["transpose_rhs"] else 2])),
        tgmm=spy("tgmm", lambda lhs, rhs, groups, **how: (groups.sizes.shape[0], lhs.shape[1], rhs.shape[1])),
    )
    monkeypatch.setattr(sys.modules["slicedice.kernels.grouped_matmul"], "load", lambda name: seen)
    lhs, rhs, sizes, cotangent = (
        jnp.ones((3, 24, 5)),
        jnp.ones((3, 4, 5, 2)),
        jnp.ones((3, 4), int),
        jnp.ones((3, 24, 2)),
    )
    out = jax.jit(jax.vmap(gradients("blocks")))(lhs, rhs, sizes, cotangent)
    assert [x.shape for x in out] == [(3, 24, 2), (3, 24, 5), (3, 4, 5, 2)]
    folded = [call for call in asked if call[3] == 3]
    assert sorted(folded) == [
        ("gmm", (72, 2), (12,), 3, 1),
        ("gmm", (72, 5), (12,), 3, 1),
        ("tgmm", (72, 5), (12,), 3, 1),
    ]


def test_groups_of_folded_models():
    groups = Groups(jnp.array([2, 1, 0, 3, 0, 0])).fold(2)
    assert groups.members == 2
    np.testing.assert_array_equal(groups.starts(10), [0, 2, 3, 5, 8, 8])
    np.testing.assert_array_equal(groups.inside(10), [True] * 3 + [False] * 2 + [True] * 3 + [False] * 2)
    np.testing.assert_array_equal(groups.without_holes(10).sizes, [2, 1, 2, 3, 0, 0])
    selected = groups.select(jnp.full((10, 2), jnp.nan).at[:3].set(1.0).at[5:8].set(2.0))
    np.testing.assert_array_equal(selected[:, 0], [1, 1, 1, 0, 0, 2, 2, 2, 0, 0])


def test_groups_whose_rows_are_merged(rng):
    """Of four layouts of two models, each with three groups of rows and a tail."""
    sizes = rng.integers(0, 4, (4, 2, 3))
    groups, places, back = Groups(jnp.array(sizes.reshape(-1)), members=2).merge(4, 4 * 2 * 10)
    assert groups.members == 2
    np.testing.assert_array_equal(groups.sizes, sizes.sum(0).reshape(-1))
    np.testing.assert_array_equal(places[back], np.arange(80))
    model, group = (np.zeros((4, 2, 10), int) for _ in range(2))
    for layout, member in np.ndindex(4, 2):
        model[layout, member] = member
        group[layout, member] = np.repeat([0, 1, 2, 3], [*sizes[layout, member], 10 - sizes[layout, member].sum()])
    np.testing.assert_array_equal(model.reshape(-1)[places], np.repeat([0, 1], 40))
    starts = groups.starts(80)
    for member, g in np.ndindex(2, 3):
        start = starts[3 * member + g]
        own = group.reshape(-1)[places][start : start + sizes[:, member, g].sum()]
        np.testing.assert_array_equal(own, g)
    assert np.count_nonzero(group.reshape(-1)[places][np.array(groups.inside(80))] == 3) == 0


@pytest.mark.long
@EVERY
def test_second_derivatives_of_the_experts(implementation: str, rng):
    """Of a sum of squares, whose gradient's gradient passes through the backward pass, beside NaN."""
    rows, gate, up, down, sizes, _ = ffn.draw(rng, 12, 3, 2, [5, 0, 6], dtype=DTYPE[implementation])

    def by_loop(rows, gate, up, down):
        parts = zip(reference.slices(sizes), gate, up, down, strict=True)
        return sum(squares(jax.nn.silu(rows[at] @ g) * (rows[at] @ u) @ d) for at, g, u, d in parts)

    def ours(rows, gate, up, down):
        return squares(expert_ffn(rows, gate, up, down, sizes, implementation=implementation))

    def squares(x):
        return (x.astype(jnp.float32) ** 2).sum()

    def steepness(function):
        every = (0, 1, 2, 3)
        return jax.jit(jax.grad(lambda *x: sum(map(squares, jax.grad(function, every)(*x))), every))

    arrays = rows, gate, up, down
    with running(implementation):
        got = jax.block_until_ready(steepness(ours)(*arrays))
    for a, b in zip(got, steepness(by_loop)(*(x.astype(jnp.float32) for x in arrays)), strict=True):
        assert_close(a, b, {"float32": 1e-4, "bfloat16": 2**-4})


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from slicedice.kernels import expert_ffn, grouped_matmul, native

assert jax.device_count() == 2
rng = np.random.default_rng({seed})
lhs, rhs = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((24, 5), (8, 5, 3)))
sizes = jnp.array([3, 0, 4, 2, 0, 12, 0, 0])  # four experts and twelve rows on each device
mesh = jax.make_mesh((2,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
E = P("expert")
for implementation in ["blocks", "ragged_dot"] + ["native"] * native.available():
    def loss(lhs, rhs):
        def local(lhs, rhs, sizes):
            return grouped_matmul(lhs, rhs, sizes, implementation=implementation)
        return (jax.shard_map(local, mesh=mesh, in_specs=E, out_specs=E)(lhs, rhs, sizes) ** 2).sum()
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(lhs, rhs)
    want = sum(
        (np.asarray(lhs[a:b], np.float64) @ np.asarray(rhs[g], np.float64)).__pow__(2).sum()
        for g, (a, b) in {{0: (0, 3), 2: (3, 7), 3: (7, 9), 5: (12, 24)}}.items()
    )
    np.testing.assert_allclose(value, want, rtol=1e-5)
    rows = np.abs(grads[0]).sum(1)
    assert (rows[9:12] == 0).all() and (rows[:9] > 0).all() and (rows[12:] > 0).all()
    assert [bool(np.abs(g).sum() > 0) for g in grads[1]] == [True, False, True, True, False, True, False, False]
    # The same matrices on both devices: their gradient is summed over the devices' rows.
    def shared(rhs, on):
        def local(lhs, rhs):
            return expert_ffn(lhs, rhs, rhs, rhs, jnp.array([3, 0, 9, 0]), implementation=implementation)
        return (on(local)(lhs[:, :3], rhs[:4, :3]) ** 2).sum()
    split = jax.grad(lambda w: shared(w, lambda f: jax.shard_map(f, mesh=mesh, in_specs=(E, P()), out_specs=E)))(rhs)
    whole = jax.grad(lambda w: shared(w, lambda f: lambda x, w: jnp.concatenate([f(x[:12], w), f(x[12:], w)])))(rhs)
    np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-6)
    # Sizes that are not traced are looked at there too.
    def too_many(lhs, rhs):
        return grouped_matmul(lhs, rhs, np.array([9, 0, 9, 0]), implementation=implementation)
    try:
        jax.shard_map(too_many, mesh=mesh, in_specs=E, out_specs=E)(lhs, rhs)
    except ValueError as error:
        assert "at most M = 12" in str(error), error
    else:
        raise AssertionError("eighteen of twelve rows")
    print(implementation, "ok")
"""

EXPLICIT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from slicedice.kernels import expert_ffn, grouped_matmul, native, transposed_grouped_matmul

mesh = jax.make_mesh((2,), ("expert",), axis_types=(jax.sharding.AxisType.Explicit,))
rng = np.random.default_rng({seed})
lhs, rhs = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((24, 5), (8, 5, 5)))
sizes = jnp.array([3, 0, 4, 2, 0, 12, 0, 0])

def refused(function, *arrays):
    try:
        function(*arrays)
    except ValueError as error:
        assert "sharded over explicit axes of a mesh" in str(error) and "inside of jax.shard_map" in str(error), error
    else:
        raise AssertionError("not refused")

def experts(lhs, rhs, sizes):
    return expert_ffn(lhs, rhs, rhs, rhs, sizes, implementation=implementation)

def product(lhs, rhs, sizes):
    return grouped_matmul(lhs, rhs, sizes, implementation=implementation)

def transposed(lhs, rhs, sizes):
    return transposed_grouped_matmul(lhs, lhs, sizes, implementation=implementation)

for implementation in ["blocks"] + ["native"] * native.available():
    alone = [f(lhs, rhs, sizes) for f in (product, experts)]
    with jax.set_mesh(mesh):
        arrays = [jax.device_put(x, NamedSharding(mesh, P())) for x in (lhs, rhs, sizes)]
        for function, want in zip((product, experts), alone):
            np.testing.assert_allclose(jax.jit(function)(*arrays), want, rtol=1e-5, atol=1e-5)
        sharded = [jax.device_put(x, NamedSharding(mesh, P("expert"))) for x in arrays]
        for i in range(3):
            mixed = [*arrays[:i], sharded[i], *arrays[i + 1 :]]
            for function in (product, experts) + (transposed,) * (i != 1):
                refused(function, *mixed)
                refused(jax.jit(function), *mixed)
        two = jax.device_put(jnp.stack([lhs, lhs]), NamedSharding(mesh, P("expert")))
        refused(jax.vmap(product, (0, None, None)), two, *arrays[1:])
        whole = jax.sharding.auto_axes(product, axes="expert", out_sharding=P("expert"))(*sharded)
        np.testing.assert_allclose(whole, alone[0], rtol=1e-5, atol=1e-5)
        E = P("expert")
        split = jax.shard_map(lambda x, w: product(x, w, jnp.array([3, 0, 4, 2])), in_specs=(E, E), out_specs=E)
        np.testing.assert_allclose(np.asarray(split(*sharded[:2]))[:9], alone[0][:9], rtol=1e-5, atol=1e-5)
    print(implementation, "ok")
"""


@pytest.mark.parametrize(
    ("program", "implementations"), [pytest.param(SHARDED, 2, marks=pytest.mark.long), (EXPLICIT, 1)]
)
def test_on_two_devices(program: str, implementations: int):
    """Each device multiplies its rows with its experts; a fresh process, since devices are counted once."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-W", "error", "-c", program.format(seed=np.random.default_rng().integers(2**32))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok") >= implementations
