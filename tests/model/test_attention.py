"""Attention against its definition in float64, and against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice.model import attention
from slicedice.moe.experts import truncated_normal


def _rotated(x: np.ndarray) -> np.ndarray:
    """RoPE as a rotation in the complex plane, of [B, S, H, C]."""
    half = x.shape[-1] // 2
    turn = np.arange(x.shape[1])[:, None, None] * 500_000.0 ** (-2 * np.arange(half) / x.shape[-1])
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * turn)
    return np.concatenate([z.real, z.imag], axis=-1)


def test_rope_is_a_rotation_of_pairs(rng):
    x = rng.standard_normal((2, 9, 3, 8)).astype(np.float32)
    got = jax.jit(attention.rope)(x)
    np.testing.assert_allclose(got, _rotated(x), rtol=0, atol=1e-5)
    half = jax.jit(attention.rope)(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), got, rtol=2**-7, atol=2**-6)


def test_scores_after_rope_depend_on_distance_alone(rng):
    query, key = np.tile(rng.standard_normal((2, 1, 1, 1, 6)), (1, 1, 12, 1, 1)).astype(np.float32)
    scores = jnp.einsum("bqhc,bkhc->qk", *map(attention.rope, (query, key)), precision="highest")
    diagonals = [np.diagonal(scores, offset) for offset in range(-11, 12)]
    for diagonal in diagonals:
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-5)
    assert np.std([diagonal[0] for diagonal in diagonals]) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_causal_mix_is_softmax_attention(scale: float, rng):
    query, key, value, cotangent = rng.standard_normal((4, 2, 9, 3, 8)).astype(np.float32)
    query *= scale

    def all_of(function):
        out, pull = jax.vjp(function, query, key, value)
        return out, *pull(cotangent)

    def reference(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)

    got, want = jax.jit(lambda: all_of(attention.causal_mix))(), jax.jit(lambda: all_of(reference))()
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_attention_is_its_definition(rng, monkeypatch: pytest.MonkeyPatch, backend: str):
    """Norms run over the full width, before heads are parted; each head scores with 1/sqrt(C)."""
    monkeypatch.setattr(attention, "platform", lambda: backend)
    d, heads, b, s = 12, 3, 2, 7
    module = attention.Attention(d, heads, init=truncated_normal(), rngs=nnx.Rngs(params=0))
    w = [rng.standard_normal((d, d)) / d**0.5 for _ in range(4)]
    for param, values in zip((module.query, module.key, module.value, module.out), w, strict=True):
        param[...] = jnp.asarray(values, jnp.float32)
    gains = 1 + 0.5 * rng.standard_normal((2, d))
    for module_norm, gain in zip((module.query_norm, module.key_norm), gains, strict=True):
        nnx.update(module_norm, {"scale": jnp.asarray(gain, jnp.float32)})
    # One head much louder than the others: norms of each head by itself would even that out.
    x = rng.standard_normal((b, s, d))
    w[0][:, :4] *= 10
    module.query[...] = jnp.asarray(w[0], jnp.float32)

    def heads_of(y):
        return y.reshape(b, s, heads, d // heads)

    def norm(y, gain):
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * gain

    query, key = (_rotated(heads_of(norm(x @ w[i], gains[i]))) for i in (0, 1))
    scores = np.einsum("bqhc,bkhc->bhqk", query, key) / (d // heads) ** 0.5
    shares = np.exp(scores) * np.tri(s)
    shares /= shares.sum(-1, keepdims=True)
    want = np.einsum("bhqk,bkhc->bqhc", shares, heads_of(x @ w[2])).reshape(b, s, d) @ w[3]
    got = jax.jit(lambda x: module(x))(x.astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
