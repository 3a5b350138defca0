"""Cross-entropy in parts against its definition over whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.model import cross_entropy
from slicedice.model.cross_entropy import mean_loss, token_nats

TOKENS, WIDTH, VOCABULARY = 35, 6, 11


def _defined(x, head, targets, z_weight):
    logits = x @ head
    log_z = jax.nn.logsumexp(logits, axis=1)
    nats = log_z - logits[jnp.arange(len(targets)), targets]
    return nats.mean() + z_weight * (log_z**2).mean(), nats


@pytest.fixture
def arrays(rng):
    x, head = rng.standard_normal((TOKENS, WIDTH)), 2 * rng.standard_normal((WIDTH, VOCABULARY))
    return jnp.float32(x), jnp.float32(head), jnp.asarray(rng.integers(0, VOCABULARY, TOKENS), jnp.int32)


@pytest.mark.parametrize("at_once", [100, 35, 12, 7, 1])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
def test_values_and_gradients(at_once: int, z_weight: float, arrays, monkeypatch: pytest.MonkeyPatch):
    """However many tokens there are at once; 12 leave a part that is filled up."""
    monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", at_once * VOCABULARY * 4)
    x, head, targets = arrays

    def ours(x, head):
        loss, nats = mean_loss(x, head, targets, z_weight)
        return 3 * loss + 5 * nats, nats  # the second has no gradient

    (value, nats), grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(x, head)
    loss, by_token = _defined(x, head, targets, z_weight)
    want = jax.grad(lambda x, head: 3 * _defined(x, head, targets, z_weight)[0], (0, 1))(x, head)
    np.testing.assert_allclose(value, 3 * loss + 5 * by_token.mean(), rtol=1e-5)
    np.testing.assert_allclose(nats, by_token.mean(), rtol=1e-5)
    for a, b in zip(grads, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    np.testing.assert_allclose(mean_loss(x, head, targets, z_weight)[0], loss, rtol=1e-5)
    np.testing.assert_allclose(token_nats(x, head, targets), by_token, rtol=0, atol=1e-5)


def test_bfloat16_sums_in_float32(arrays):
    *wide, targets = arrays
    x, head = (a.astype(jnp.bfloat16) for a in wide)
    loss, pull = jax.vjp(lambda x, head: mean_loss(x, head, targets, 0.1)[0], x, head)
    wide = x.astype(jnp.float32), head.astype(jnp.float32)
    want, wide_pull = jax.vjp(lambda x, head: _defined(x, head, targets, 0.1)[0], *wide)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    for a, b in zip(pull(jnp.float32(1)), wide_pull(jnp.float32(1)), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=2**-7 * np.abs(b).max())


def test_logits_of_all_tokens_are_nowhere(monkeypatch: pytest.MonkeyPatch):
    tokens, vocabulary = 512, 1024
    monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 32 * vocabulary * 4)
    shapes = (tokens, 8), (8, vocabulary)
    x, head = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    targets = jnp.zeros(tokens, jnp.int32)
    gradient = jax.jit(jax.grad(lambda x, head: mean_loss(x, head, targets, 0.1)[0], (0, 1)))
    memory = gradient.lower(x, head).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < tokens * vocabulary * 4 / 3
