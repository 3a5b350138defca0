"""Moving tokens to rows and back, against a dense formulation with one-hot assignments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.kernels import grouped_matmul
from slicedice.moe import dispatch
from slicedice.moe.routing import Assignment

T, N, K, D = 40, 6, 3, 5


def _assignment(rng: np.random.Generator) -> Assignment:
    """Distinct experts for each token, expert 2 never chosen, about a third of assignments dropped."""
    experts = np.stack([rng.permutation([0, 1, 3, 4, 5])[:K] for _ in range(T)]).astype(np.int32)
    kept = rng.random((T, K)) < 0.7
    kept[7] = False  # a token that no expert takes
    weights = rng.standard_normal((T, K)).astype(np.float32)
    return Assignment(jnp.asarray(experts), jnp.asarray(weights), jnp.asarray(kept))


@pytest.mark.parametrize("alignment", [1, 8])
def test_rows_hold_the_kept_assignments_sorted_by_expert(alignment: int, rng):
    assignment = _assignment(rng)
    plan = jax.jit(dispatch.plan, static_argnums=(1, 2))(assignment, N, alignment)
    experts, kept = np.asarray(assignment.experts), np.asarray(assignment.kept)
    counts = np.bincount(experts[kept], minlength=N)
    np.testing.assert_array_equal(plan.group_sizes, -(-counts // alignment) * alignment)
    rows = plan.token_of_row.size
    assert rows % alignment == 0
    assert rows >= plan.group_sizes.sum()
    expert_of_row = np.repeat(np.arange(N), plan.group_sizes)
    seen = np.zeros(rows, bool)
    for t in range(T):
        for j in range(K):
            row = int(plan.row_of_assignment[t, j])
            if not kept[t, j]:
                assert row >= rows
                continue
            assert expert_of_row[row] == experts[t, j]
            assert plan.token_of_row[row] == t
            assert plan.assignment_of_row[row] == t * K + j
            assert not seen[row]
            seen[row] = True
    np.testing.assert_array_equal(plan.token_of_row[~seen], 0)
    np.testing.assert_array_equal(plan.assignment_of_row[~seen], T * K)


@pytest.mark.parametrize("alignment", [1, 8])
def test_outputs_and_gradients_are_those_of_one_hot_products(alignment: int, rng):
    assignment = _assignment(rng)
    x = jnp.asarray(rng.standard_normal((T, D)), jnp.float32)
    matrices = jnp.asarray(rng.standard_normal((N, D, D)), jnp.float32)
    cotangent = jnp.asarray(rng.standard_normal((T, D)), jnp.float32)

    def sparse(x, matrices, weights):
        plan = dispatch.plan(assignment, N, alignment)
        rows = grouped_matmul(dispatch.dispatch(x, plan), matrices, plan.group_sizes, alignment=alignment)
        return dispatch.combine(jnp.tanh(rows), weights, plan)

    def dense(x, matrices, weights):
        one_hot = jax.nn.one_hot(assignment.experts, N) * assignment.kept[..., None]
        outputs = jnp.tanh(jnp.einsum("td,edf->tef", x, matrices))
        return jnp.einsum("tef,tke,tk->tf", outputs, one_hot, weights)

    def all_of(function):
        out, pull = jax.vjp(function, x, matrices, assignment.weights)
        return out, *pull(cotangent)

    got, want = jax.jit(lambda: all_of(sparse))(), jax.jit(lambda: all_of(dense))()
    for name, a, b in zip(("output", "x", "matrices", "weights"), got, want, strict=True):
        axes = tuple(range(1, b.ndim))  # for each token, or each expert
        error, size = np.sqrt(np.sum((a - b) ** 2, axis=axes)), np.sqrt(np.sum(b**2, axis=axes))
        # Sums may cancel in one token: then the error is measured by what is usual.
        assert (error <= 1e-5 * (size + np.median(size))).all(), f"{name}: {error} of {size}"
    assert not got[0][7].any(), "what was dropped adds zero"
    assert not got[2][2].any(), "an expert without rows has no gradient"
    assert not got[3][~assignment.kept].any()


@pytest.mark.parametrize("alignment", [1, 8])
def test_rows_that_serve_no_kept_assignment_are_not_read(alignment: int, rng):
    """Whatever fill and the rows past the last expert hold: outputs, and gradients that come from there."""
    assignment = _assignment(rng)
    plan = jax.jit(dispatch.plan, static_argnums=(1, 2))(assignment, N, alignment)
    rows, of_rows = jnp.asarray(rng.standard_normal((2, plan.token_of_row.size, D)), jnp.float32)
    x, of_out = jnp.asarray(rng.standard_normal((2, T, D)), jnp.float32)

    @jax.jit
    def everything(rows, weights, x):
        out, pull = jax.vjp(lambda rows, weights: dispatch.combine(rows, weights, plan), rows, weights)
        return out, *pull(of_out), *jax.vjp(lambda x: dispatch.dispatch(x, plan), x)[1](of_rows)

    out, drows, dweights, dx = everything(rows, assignment.weights, x)
    w, kept, row = (np.asarray(a) for a in (assignment.weights, assignment.kept, plan.row_of_assignment))
    rows, of_rows, of_out = (np.asarray(a) for a in (rows, of_rows, of_out))
    want_out, want_rows = np.zeros((T, D)), np.zeros_like(rows)
    want_weights, want_x = np.zeros((T, K)), np.zeros((T, D))
    for t, j in zip(*np.nonzero(kept), strict=True):
        want_out[t] += w[t, j] * rows[row[t, j]]
        want_rows[row[t, j]] = w[t, j] * of_out[t]
        want_weights[t, j] = rows[row[t, j]] @ of_out[t]
        want_x[t] += of_rows[row[t, j]]
    for got, want in ((out, want_out), (drows, want_rows), (dweights, want_weights), (dx, want_x)):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_sums_over_experts_are_float32():
    # In bfloat16, 1 added to 256 is lost.
    k = 512
    assignment = Assignment(jnp.arange(k)[None], jnp.ones((1, k)), jnp.ones((1, k), bool))
    x = jnp.ones((1, 1), jnp.bfloat16)

    @jax.jit
    def both(x, weights):
        plan = dispatch.plan(assignment, k, 1)
        rows, pull = jax.vjp(lambda x: dispatch.dispatch(x, plan), x)
        return dispatch.combine(rows, weights, plan), pull(rows)[0]

    out, gradient = both(x, assignment.weights)
    assert out.dtype == gradient.dtype == jnp.bfloat16
    assert float(out[0, 0]) == float(gradient[0, 0]) == k
    # The weights as well: 256.5 would be 256.
    weights = jnp.zeros((1, k)).at[0, 0].set(256.5).at[0, 1].set(-256.0)
    assert float(both(x, weights)[0][0, 0]) == 0.5
