"""Attention against its definition in float64, and against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice.model import attention
from slicedice.moe.experts import truncated_normal
from tests.model.test_norm import rotated

# Positions of the second are many blocks of queries, of the third one that ends amid a vector.
SHAPES = [(2, 9, 3, 8), (1, 1100, 2, 20), (2, 77, 1, 3), (3, 1, 2, 2)]


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_causal_mix_is_softmax_attention(shape: tuple[int, ...], scale: float, rng):
    query, key, value, cotangent = rng.standard_normal((4, *shape)).astype(np.float32)
    query *= scale

    def all_of(function):
        out, pull = jax.vjp(function, query, key, value)
        return out, *pull(cotangent)

    def reference(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)

    got, want = jax.jit(lambda: all_of(attention.causal_mix))(), jax.jit(lambda: all_of(reference))()
    # A score's rounding is relative to the score, and the exponential makes it relative to a share.
    scores = np.linalg.norm(query, axis=-1).max() * np.linalg.norm(key, axis=-1).max() / shape[-1] ** 0.5
    # At one position a score's gradient is the difference of a number to itself, summed up in another order.
    terms = np.abs(cotangent * value).sum(-1).max() * max(np.abs(query).max(), np.abs(key).max())
    least = terms / shape[-1] ** 0.5 / 16 if shape[1] == 1 else 1e-2
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-24 * (16 + 4 * scores) * max(np.abs(b).max(), least))


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_later_positions_change_nothing(rng):
    """To the bit, forward; and they get nothing back."""
    query, key, value, cotangent = rng.standard_normal((4, 2, 150, 3, 8)).astype(np.float32)
    cotangent[:, 70:] = 0
    out, pull = jax.vjp(jax.jit(attention.causal_mix), query, key, value)
    for array in (query, key, value):
        array[:, 70:] = rng.standard_normal((2, 80, 3, 8))
    np.testing.assert_array_equal(jax.jit(attention.causal_mix)(query, key, value)[:, :70], out[:, :70])
    for gradient in pull(cotangent):
        assert not gradient[:, 70:].any()
        assert gradient[:, 69].any()


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_attention_of_several_models_at_once(rng):
    arrays = rng.standard_normal((3, 4, 2, 33, 3, 8)).astype(np.float32)
    mix = jax.jit(lambda *x: jax.vjp(attention.causal_mix, *x)[1](x[0]))
    together = jax.jit(jax.vmap(mix))(*arrays)
    for i in range(4):
        for a, b in zip(together, mix(*arrays[:, i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-5)


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

    query, key = (rotated(heads_of(norm(x @ w[i], gains[i]))) for i in (0, 1))
    scores = np.einsum("bqhc,bkhc->bhqk", query, key) / (d // heads) ** 0.5
    shares = np.exp(scores) * np.tri(s)
    shares /= shares.sum(-1, keepdims=True)
    want = np.einsum("bhqk,bkhc->bqhc", shares, heads_of(x @ w[2])).reshape(b, s, d) @ w[3]
    got = jax.jit(lambda x: module(x))(x.astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
