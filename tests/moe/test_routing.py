"""Selection, auxiliary losses and capacity, each against its definition in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.moe import routing

BOTH_WAYS = pytest.mark.parametrize("k", [1, 2, routing.MAXIMA, routing.MAXIMA + 1, 16])


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def chosen(scores: jax.Array, k: int) -> jax.Array:
    """What is chosen where nothing is added to the scores."""
    return routing.select(scores, jnp.zeros(scores.shape[-1]), k)[0]


@BOTH_WAYS
@pytest.mark.parametrize("n", [16, 17, 100])
@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_top_k_and_ties(n: int, k: int, rng):
    scores = rng.integers(0, 6, (40, n)).astype(np.float32) - 3
    got = jax.jit(chosen, static_argnums=1)(scores, k)
    np.testing.assert_array_equal(got, np.argsort(-scores, axis=1, kind="stable")[:, :k])
    grouped = jax.jit(jax.vmap(lambda scores: chosen(scores, k)))(scores.reshape(4, 10, n))
    np.testing.assert_array_equal(grouped.reshape(40, k), got)


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_experts_are_distinct_where_scores_are_the_lowest_there_are(rng):
    scores = np.where(rng.random((40, 24)) < 0.8, -np.inf, rng.standard_normal((40, 24))).astype(np.float32)
    got = jax.jit(chosen, static_argnums=1)(scores, 20)
    np.testing.assert_array_equal(got, np.argsort(-scores, axis=1, kind="stable")[:, :20])


@BOTH_WAYS
@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_the_bias_selects_and_weights_are_plain_probabilities(k: int, rng):
    probabilities = _softmax(rng.standard_normal((40, 16))).astype(np.float32)
    bias = rng.uniform(-0.2, 0.2, 16).astype(np.float32)
    experts, weights = jax.jit(routing.select, static_argnums=2)(probabilities, bias, k)
    np.testing.assert_array_equal(experts, np.argsort(-(probabilities + bias), axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(weights, np.take_along_axis(probabilities, np.asarray(experts), axis=1))
    plain = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    assert k == 16 or (np.sort(experts) != np.sort(plain)).any(), "this bias changes nothing"


@BOTH_WAYS
@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_gradients_of_the_selection(k: int, rng):
    probabilities = _softmax(rng.standard_normal((10, 16))).astype(np.float32)
    bias = rng.standard_normal(16).astype(np.float32)
    cotangent = rng.standard_normal((10, k)).astype(np.float32)

    @jax.jit
    def gradients(probabilities, bias):
        _, pull = jax.vjp(lambda p, b: routing.select(p, b, k)[1], probabilities, bias)
        return routing.select(probabilities, bias, k)[0], *pull(cotangent)

    experts, of_probabilities, of_bias = gradients(probabilities, bias)
    want = np.zeros_like(probabilities)
    np.put_along_axis(want, np.asarray(experts), cotangent, axis=1)
    np.testing.assert_array_equal(of_probabilities, want)
    np.testing.assert_array_equal(of_bias, 0.0)


@pytest.mark.parametrize(("n", "k"), [(8, 1), (8, 2), (12, 4), (5, 5)])
def test_load_balancing_loss_at_its_ends(n: int, k: int):
    tokens, mask = 2 * n, jnp.ones(2 * n, bool)
    even, counts = jnp.full((tokens, n), 1 / n), jnp.full(n, tokens * k // n)
    np.testing.assert_allclose(routing.load_balancing_loss(even, counts, mask, k), 1.0, rtol=1e-6)
    chosen = jnp.arange(n) < k
    worst = routing.load_balancing_loss(jnp.tile(chosen / k, (tokens, 1)), tokens * chosen, mask, k)
    np.testing.assert_allclose(worst, n / k, rtol=1e-6)


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_auxiliary_losses_and_their_gradients_with_padding(rng):
    logits = 3 * rng.standard_normal((50, 6)).astype(np.float32)
    mask = rng.random(50) < 0.6
    mask[:2] = True, False
    logits[~mask] *= 100  # padding that is counted shows
    counts = rng.integers(0, 30, 6)

    @jax.jit
    def losses(logits):
        probabilities, log_sums = routing.probabilities(logits)
        return routing.load_balancing_loss(probabilities, counts, mask, 2), routing.router_z_loss(log_sums, mask)

    real, t = logits[mask].astype(np.float64), mask.sum()
    p, z = _softmax(real), np.log(np.exp(real).sum(1))
    balance, router_z = losses(logits)
    np.testing.assert_allclose(balance, 6 / 2 * np.sum(counts / t * p.mean(0)), rtol=1e-6)
    np.testing.assert_allclose(router_z, np.mean(z**2), rtol=1e-6)

    of_balance, of_z = jax.jacrev(losses)(logits)
    want = np.zeros((2, 50, 6))
    slope = 6 / 2 * counts / t / t  # counts are constants: only probabilities learn
    want[0, mask] = p * (slope - (p * slope).sum(1, keepdims=True))
    want[1, mask] = 2 * z[:, None] * p / t
    np.testing.assert_allclose(of_balance, want[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(of_z, want[1], rtol=1e-4, atol=1e-7)


def test_losses_without_a_single_token():
    mask, logits = jnp.zeros(4, bool), jnp.ones((4, 3))
    balance = jax.jit(routing.load_balancing_loss, static_argnums=3)(logits, jnp.zeros(3, int), mask, 1)
    assert balance == jax.jit(routing.router_z_loss)(logits[:, 0], mask) == 0


@pytest.mark.parametrize(
    ("tokens", "n", "k", "factor", "want"),
    [
        (2048, 16, 2, 1.2, 312),  # 307.2: cut to 307, then up to the next multiple of 8
        (64, 8, 1, 1.0, 8),  # 8 is a multiple of 8 and stays
        (71, 8, 1, 1.0, 8),  # 8.875 is cut, not rounded up
        (72, 8, 1, 1.0, 16),  # 9
        (65_536, 4096, 16, 1.2, 312),
        (2048, 32, 32, 1.0, 2048),
        (2048, 16, 2, 2.5, 640),
    ],
)
def test_capacity(tokens: int, n: int, k: int, factor: float, want: int):
    assert routing.capacity(tokens, n, k, factor) == want


@pytest.mark.parametrize("limit", [0, 1, 3, 1000])
def test_the_first_tokens_find_room(limit: int, rng):
    experts = np.stack([rng.permutation(5)[:3] for _ in range(30)]).astype(np.int32)
    mask = rng.random(30) < 0.7
    offered = np.tile(mask[:, None], (1, 3))
    got = jax.jit(routing.within_capacity, static_argnums=(2, 3))(experts, offered, 5, limit)
    taken, want = np.zeros(5, int), np.zeros((30, 3), bool)
    for t in np.flatnonzero(mask):
        for j, e in enumerate(experts[t]):
            want[t, j] = taken[e] < limit
            taken[e] += want[t, j]
    np.testing.assert_array_equal(got, want)


def test_load_counts_what_is_marked(rng):
    experts, marked = rng.integers(0, 7, (30, 2)), rng.random((30, 2)) < 0.5
    got = routing.load(jnp.asarray(experts), jnp.asarray(marked), 9)
    np.testing.assert_array_equal(got, np.bincount(experts[marked], minlength=9))


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_sorting_is_stable_and_puts_what_is_not_offered_last(rng):
    experts, offered = rng.integers(0, 4, (3, 25, 2)).astype(np.int32), rng.random((3, 25, 2)) < 0.7
    together = jax.jit(jax.vmap(lambda e, o: routing.sort_by_expert(e, o, 4)))(experts, offered)
    for lane in range(3):
        order, place, counts = jax.jit(lambda e, o: routing.sort_by_expert(e, o, 4))(experts[lane], offered[lane])
        want = np.argsort(np.where(offered[lane], experts[lane], 4).reshape(-1), kind="stable")
        np.testing.assert_array_equal(order, want)
        np.testing.assert_array_equal(place, np.argsort(want))
        for one, all_ in zip((order, place, counts), together, strict=True):
            np.testing.assert_array_equal(all_[lane], one)
        np.testing.assert_array_equal(counts, np.bincount(experts[lane][offered[lane]], minlength=4))


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_each_of_several_models_selects_by_its_own_bias(rng):
    """As lanes are trained, whose tokens lie in routing groups."""
    probabilities = _softmax(rng.standard_normal((3 * 2 * 20, 16))).astype(np.float32).reshape(3, 2, 20, 16)
    bias, grad = rng.uniform(-0.2, 0.2, (3, 16)).astype(np.float32), rng.random((3, 2, 20, 4)).astype(np.float32)

    def of_model(probabilities, bias, grad):
        (experts, weights), pull = jax.vjp(jax.vmap(lambda p: routing.select(p, bias, 4)), probabilities)
        return experts, weights, *pull((np.zeros(experts.shape, jax.dtypes.float0), grad))

    together = jax.jit(jax.vmap(of_model))(probabilities, bias, grad)
    for lane in range(3):
        for one, all_ in zip(of_model(probabilities[lane], bias[lane], grad[lane]), together, strict=True):
            np.testing.assert_array_equal(all_[lane], one)
    want = np.argsort(-(probabilities + bias[:, None, None]), axis=-1, kind="stable")[..., :4]
    np.testing.assert_array_equal(together[0], want)


@pytest.mark.parametrize("shape", [(1, 1), (70, 5), (3, 41, 16), (200, 100)])
@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_probabilities_and_their_gradients(shape: tuple[int, ...], rng):
    logits, grad = 5 * rng.standard_normal((2, *shape))
    log_grad = rng.standard_normal(shape[:-1])
    # Shifted far, as logits that nothing holds in place may be; and one expert that is as good as certain.
    logits += 80 * rng.standard_normal((*shape[:-1], 1))
    logits[..., 0] += 200 * (rng.random(shape[:-1]) < 0.1)

    def all_of(logits, grad, log_grad):
        out, pull = jax.vjp(routing.probabilities, logits)
        return *out, *pull((grad, log_grad))

    compute = jax.jit(all_of if len(shape) == 2 else jax.vmap(all_of))  # groups of tokens, as a capacity has them
    shares, log_sums, of_logits = compute(*map(jnp.float32, (logits, grad, log_grad)))
    most = logits.max(-1, keepdims=True)
    p = np.exp(logits - most)
    z = np.log(p.sum(-1)) + most[..., 0]
    p /= p.sum(-1, keepdims=True)
    # A logit's rounding is relative to it, and the exponential makes it relative to a probability.
    rounding = 2.0**-22 * np.abs(logits).max()
    np.testing.assert_allclose(shares, p, rtol=rounding, atol=1e-30)
    np.testing.assert_allclose(log_sums, z, rtol=0, atol=rounding)
    want = p * (grad - (p * grad).sum(-1, keepdims=True) + log_grad[..., None])
    np.testing.assert_allclose(of_logits, want, rtol=0, atol=2 * rounding * np.abs(want).max())


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_logits_that_are_no_numbers_are_not_hidden():
    """By them a run that has diverged is told."""
    logits = jnp.array([[0.0, 1.0, jnp.nan], [jnp.inf, 0.0, 0.0], [0.0, 1.0, 2.0]])
    shares, log_sums = jax.jit(lambda x: routing.probabilities(x))(logits)
    assert np.isnan(shares[:2]).any(1).all()
    assert np.isfinite(shares[2]).all()
    assert np.isnan(log_sums[0])
    assert np.isfinite(log_sums[2])
