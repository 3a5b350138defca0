"""A layer's experts as one kernel against the same as dispatch, products and combine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.kernels import expert_ffn, is_native
from slicedice.moe import dispatch
from slicedice.moe.native_experts import Stack, native_experts, native_gated
from slicedice.moe.routing import Assignment

pytestmark = pytest.mark.skipif(not is_native(), reason="needs the CPU and a C++ compiler")

CASES = {
    "odd widths": {"tokens": 57, "k": 3, "n": 7, "d": 21, "f": 5},
    "hundreds of rows an expert": {"tokens": 700, "k": 2, "n": 3, "d": 16, "f": 33},
    "experts without rows": {"tokens": 6, "k": 1, "n": 40, "d": 8, "f": 4},
    "more rows than there is room for": {"tokens": 57, "k": 3, "n": 7, "d": 21, "f": 5, "room": 100},
    "nothing kept": {"tokens": 9, "k": 2, "n": 4, "d": 8, "f": 4, "kept": 0.0},
    "k of sixteen": {"tokens": 33, "k": 16, "n": 16, "d": 40, "f": 3},
}


def drawn(rng: np.random.Generator, tokens: int, k: int, n: int, d: int, f: int, kept: float = 0.9, room=None):
    """Tokens, weights and matrices, a plan, and a gradient of what comes out."""
    experts = np.argsort(rng.random((tokens, n)) ** 3 + np.arange(n) / n, axis=1)[:, :k]
    assignment = Assignment(
        jnp.asarray(experts, jnp.int32),
        jnp.asarray(rng.random((tokens, k)), jnp.float32),
        jnp.asarray(rng.random((tokens, k)) < kept),
    )
    shapes = (tokens, d), (n, d, f), (n, d, f), (n, f, d), (tokens, d)
    x, gate, up, down, grad = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    return (x, assignment.weights, gate, up, down), dispatch.plan(assignment, n, 1, room), grad


def composed(x, weights, gate, up, down, plan):
    rows = expert_ffn(dispatch.dispatch(x, plan), gate, up, down, plan.group_sizes, implementation="ragged_dot")
    return dispatch.combine(rows, weights, plan)


def all_of(function, arrays, plan, grad):
    out, pull = jax.vjp(lambda *arrays: function(*arrays, plan), *arrays)
    return out, *pull(grad)


def assert_close(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * (1e-6 + float(np.abs(b).max())))


def test_rows_out_of_bounds_are_refused(rng):
    """What is traced is not looked at before."""
    (x, weights, *matrices), plan, _ = drawn(rng, **CASES["odd widths"])
    stack = Stack(*(w[None] for w in matrices), jnp.int32(1))  # pyright: ignore[reportCallIssue]
    more = plan._replace(group_sizes=plan.group_sizes.at[2].add(len(plan.token_of_row)))
    less = plan._replace(group_sizes=plan.group_sizes.at[2].set(-1))
    none = plan._replace(assignment_of_row=jnp.full_like(plan.assignment_of_row, -1))
    for wrong, where in ((more, None), (less, None), (none, None), (plan, stack)):
        with pytest.raises(jax.errors.JaxRuntimeError, match="out of bounds"):
            jax.block_until_ready(jax.jit(native_experts)(x, weights, *matrices, wrong, where))


def test_matrices_are_read_where_all_layers_lie(rng):
    """Those of the layer, and gradients are its own; what is handed over beside them is not looked at."""
    arrays, plan, grad = drawn(rng, **CASES["odd widths"])
    x, weights, *matrices = arrays
    want = all_of(native_experts, arrays, plan, grad)
    others = [[jnp.asarray(rng.standard_normal(w.shape), jnp.float32) for w in matrices] for _ in range(2)]
    stacks = [jnp.stack([other, w, another]) for w, other, another in zip(matrices, *others, strict=True)]

    @jax.jit
    def got(x, weights, unread, stacks, index):
        def there(x, weights, gate, up, down, plan):
            return native_experts(x, weights, gate, up, down, plan, Stack(stacks[0], stacks[1], stacks[2], index))

        return all_of(there, (x, weights, *unread), plan, grad)

    assert_close(got(x, weights, [jnp.full_like(w, jnp.nan) for w in matrices], stacks, jnp.int32(1)), want)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_the_parts(case: str, rng):
    arrays, plan, grad = drawn(rng, **CASES[case])
    lost = case == "more rows than there is room for"
    assert (int(plan.lost) > 0) is lost
    got, want = (jax.jit(all_of, static_argnums=0)(f, arrays, plan, grad) for f in (native_experts, composed))
    assert_close(got, want)


def test_models_mapped_over_are_each_itself(rng):
    """As lanes are trained: each with its own tokens' experts, one with none at all."""
    cases = [drawn(rng, 57, 3, 7, 21, 5, kept) for kept in (1.0, 0.5, 0.0)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *cases)
    together = jax.jit(jax.vmap(lambda *x: all_of(native_experts, *x)))(*stacked)
    for i, case in enumerate(cases):
        assert_close([x[i] for x in together], jax.jit(lambda *x: all_of(native_experts, *x))(*case))


def test_tokens_in_bfloat16_are_computed_in_float32(rng):
    arrays, plan, grad = drawn(rng, **CASES["k of sixteen"])
    narrow = [x.astype(jnp.bfloat16) for x in (arrays[0], *arrays[2:])]
    narrow.insert(1, arrays[1])
    got = all_of(native_experts, narrow, plan, grad.astype(jnp.bfloat16))
    wide = [x.astype(jnp.float32) for x in narrow]
    want = all_of(composed, wide, plan, grad.astype(jnp.bfloat16).astype(jnp.float32))
    for a, b, like in zip(got, want, (narrow[0], *narrow), strict=True):
        assert a.dtype == like.dtype
        bound = 2.0**-8 if like.dtype == jnp.bfloat16 else 2e-5
        np.testing.assert_allclose(np.float32(a), b, rtol=bound, atol=bound * np.abs(b).max() / 100)


def test_values_of_a_network_that_is_always_on(rng):
    """Several tasks of them, the last one short; and arrays of several models at once."""
    a, b, grad = (jnp.float32(8 * rng.standard_normal((3, 211, 53))) for _ in range(3))

    def all_of(gated, a, b, grad):
        out, pull = jax.vjp(gated, a, b)
        return out, *pull(grad)

    def plain(a, b):
        return jax.nn.silu(a) * b

    want = jax.jit(all_of, static_argnums=0)(plain, a, b, grad)
    for function in (all_of, jax.vmap(all_of, (None, 0, 0, 0))):
        for got, expected in zip(jax.jit(function, static_argnums=0)(native_gated, a, b, grad), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
