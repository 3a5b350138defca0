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
from tests.kernels.contract import EVERY, PLATFORM, check, draw, magnitudes, running

SIZES = ([3, 0, 18, 0], [0, 7, 1, 2], [0, 0, 0, 0])


def gradients(implementation: str):
    def both(lhs, rhs, sizes, cotangent):
        out, pull = jax.vjp(lambda a, b: grouped_matmul(a, b, sizes, implementation=implementation), lhs, rhs)
        return reference.Gradients(out, *pull(cotangent))

    return both


@EVERY
def test_each_model_is_its_own_product(implementation: str, rng):
    """Each has group sizes of its own and a tail of NaN, between which and the next model's rows nothing leaks."""
    members = [draw(rng, 24, 5, 3, sizes) for sizes in SIZES]
    with running(implementation):
        batched = jax.jit(jax.vmap(gradients(implementation)))(*map(jnp.stack, zip(*members, strict=True)))
    for i, arrays in enumerate(members):
        got = reference.Gradients(*(x[i] for x in batched))
        check(got, reference.grouped_matmul(*arrays), magnitudes(reference.grouped_matmul, *arrays), np.array(SIZES[i]))


@EVERY
def test_a_model_that_has_diverged_is_alone(implementation: str, rng):
    """NaN in a model's matrices, and in an empty group's, reaches no row of another model or group."""
    if implementation == "ragged_dot":
        pytest.skip("XLA's own multiplies every row with every matrix on CPU")
    members = [draw(rng, 24, 5, 3, sizes) for sizes in SIZES[:2]]
    lhs, rhs, sizes, cotangent = map(jnp.stack, zip(*members, strict=True))
    rhs = rhs.at[1].set(jnp.nan).at[0, 1].set(jnp.nan).at[0, 3].set(jnp.nan)
    with running(implementation):
        got = jax.jit(jax.vmap(gradients(implementation)))(lhs, rhs, sizes, cotangent)
    want = reference.grouped_matmul(lhs[0], jnp.nan_to_num(rhs[0]), SIZES[0], cotangent[0])
    own = reference.Gradients(*(x[0] for x in got))
    check(own, want, magnitudes(reference.grouped_matmul, lhs[0], rhs[0], np.array(SIZES[0]), cotangent[0]), SIZES[0])
    np.testing.assert_array_equal(got.out[1, sum(SIZES[1]) :], 0.0)


@EVERY
def test_experts_of_each_model(implementation: str, rng):
    members = [ffn.draw(rng, 24, 5, 3, sizes) for sizes in SIZES]

    def both(rows, gate, up, down, sizes, grad):
        def ffn(rows, gate, up, down):
            return expert_ffn(rows, gate, up, down, sizes, implementation=implementation)

        out, pull = jax.vjp(ffn, rows, gate, up, down)
        return reference.FFNGradients(out, *pull(grad))

    with running(implementation):
        batched = jax.jit(jax.vmap(both))(*map(jnp.stack, zip(*members, strict=True)))
    for i, arrays in enumerate(members):
        ffn.check(reference.FFNGradients(*(x[i] for x in batched)), *arrays)


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
    groups = Groups(jnp.array([2, 1, 0, 3, 0, 0])).fold(jnp.array([[2, 1, 0], [3, 0, 0]]))
    assert groups.members == 2
    np.testing.assert_array_equal(groups.starts(10), [0, 2, 3, 5, 8, 8])
    np.testing.assert_array_equal(groups.inside(10), [True] * 3 + [False] * 2 + [True] * 3 + [False] * 2)
    np.testing.assert_array_equal(groups.without_holes(10).sizes, [2, 1, 2, 3, 0, 0])
    selected = groups.select(jnp.full((10, 2), jnp.nan).at[:3].set(1.0).at[5:8].set(2.0))
    np.testing.assert_array_equal(selected[:, 0], [1, 1, 1, 0, 0, 2, 2, 2, 0, 0])


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
    print(implementation, "ok")
"""


def test_experts_on_two_devices():
    """Each device multiplies its rows with its experts; a fresh process, since devices are counted once."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-W", "error", "-c", SHARDED.format(seed=np.random.default_rng().integers(2**32))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok") >= 2
