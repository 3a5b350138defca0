"""RMSNorm and rotary embedding against their definitions in float64, by the C++ kernel and without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice.model import norm


def rotated(x: np.ndarray) -> np.ndarray:
    """RoPE as a rotation in the complex plane, of [B, S, H, C]."""
    half = x.shape[-1] // 2
    turn = np.arange(x.shape[1])[:, None, None] * 500_000.0 ** (-2 * np.arange(half) / x.shape[-1])
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * turn)
    return np.concatenate([z.real, z.imag], axis=-1)


def unrotated(x: np.ndarray) -> np.ndarray:
    """The rotation by as much the other way: its transpose."""
    half = x.shape[-1] // 2
    swapped = np.concatenate([x[..., half:], x[..., :half]], axis=-1)
    turned = rotated(swapped)
    return np.concatenate([turned[..., half:], turned[..., :half]], axis=-1)


def normal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows over their root mean square, and one over that."""
    scale = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * scale, scale


def gradients(x: np.ndarray, gain: np.ndarray, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a norm, by x and gain."""
    rows, scale = normal(x)
    g = grad * gain
    return scale * (g - rows * (g * rows).mean(-1, keepdims=True)), (grad * rows).reshape(-1, x.shape[-1]).sum(0)


def module(gain: np.ndarray) -> norm.RMSNorm:
    """A norm with these gains."""
    made = norm.RMSNorm(len(gain))
    nnx.update(made, {"scale": jnp.asarray(gain, jnp.float32)})
    return made


def by_gain(function):
    """`function(norm, x)`, of the gain and x instead."""

    def of(gain, x):
        made = norm.RMSNorm(gain.shape[0])
        made.scale[...] = gain
        return function(made, x)

    return of


def assert_close(got, want, terms: int = 1):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * terms**0.5 * np.abs(b).max())


# Widths that vectors divide and do not; rows of several tasks, the last one short.
SHAPES = [(2, 9, 3, 8), (3, 130, 2, 32), (1, 5, 1, 2), (2, 200, 5, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_the_norm_and_its_gradients(shape: tuple[int, ...], rng):
    batch, positions, heads, width = shape
    x, grad = rng.standard_normal((2, batch, positions, heads * width))
    x *= np.exp(rng.standard_normal((batch, positions, 1)))
    gain = 1 + 0.5 * rng.standard_normal(heads * width)
    out, pull = jax.vjp(jax.jit(by_gain(lambda made, x: made(x))), *map(jnp.float32, (gain, x)))
    dgain, dx = pull(jnp.float32(grad))
    assert_close([out], [normal(x)[0] * gain])
    want = gradients(x, gain, grad)
    scale = normal(x)[1]
    np.testing.assert_allclose(dx / scale, want[0] / scale, rtol=0, atol=3e-6 * np.abs(want[0] / scale).max())
    assert_close([dgain], [want[1]], batch * positions)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_heads_are_turned_after_the_norm(shape: tuple[int, ...], rng):
    batch, positions, heads, width = shape
    x, grad = rng.standard_normal((2, batch, positions, heads * width))
    gain = 1 + 0.5 * rng.standard_normal(heads * width)
    function = jax.jit(by_gain(lambda made, x: made.rotated(x, heads)))
    out, pull = jax.vjp(function, *map(jnp.float32, (gain, x)))
    assert out.shape == shape
    dgain, dx = pull(jnp.float32(grad).reshape(shape))
    # Angles grow with positions, and so does their rounding.
    rounding = 2e-6 + positions * 2.0**-23
    want = gradients(x, gain, unrotated(grad.reshape(shape)).reshape(x.shape))
    for a, b in zip((out, dx), (rotated((normal(x)[0] * gain).reshape(shape)), want[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rounding * np.abs(b).max())
    np.testing.assert_allclose(dgain, want[1], rtol=0, atol=rounding * np.abs(grad).sum((0, 1)).max())


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_half_precision_is_computed_in_float32(rng):
    x, gain = rng.standard_normal((2, 7, 24)), 1 + 0.5 * rng.standard_normal(24)
    narrow = jnp.bfloat16(x)
    got = jax.jit(lambda x: module(gain).rotated(x, 2))(narrow)
    assert got.dtype == jnp.bfloat16
    want = rotated((normal(np.asarray(narrow, np.float64))[0] * gain).reshape(2, 7, 2, 12))
    # Written out, it is rounded twice, before heads are turned and after, and each time by 2^-8 of the pair at most.
    pair = np.hypot(want[..., :6], want[..., 6:])
    assert (np.abs(np.float32(got) - want) <= 1.01 * 2 * 2.0**-8 * np.concatenate([pair, pair], axis=-1)).all()


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_norms_of_several_models_at_once(rng):
    """As lanes are trained: each with its own gains."""
    gains, x = jnp.float32(rng.standard_normal((3, 24))), jnp.float32(rng.standard_normal((3, 2, 7, 24)))

    def all_of(gain, x):
        out, pull = jax.vjp(by_gain(lambda made, x: made.rotated(x, 2)), gain, x)
        return out, *pull(jnp.cos(out))

    together = jax.jit(jax.vmap(all_of))(gains, x)
    for lane in range(3):
        assert_close([array[lane] for array in together], jax.jit(all_of)(gains[lane], x[lane]))


def test_rope_is_a_rotation_of_pairs(rng):
    x = rng.standard_normal((2, 9, 3, 8)).astype(np.float32)
    got = jax.jit(norm.rope)(x)
    np.testing.assert_allclose(got, rotated(x), rtol=0, atol=1e-5)
    half = jax.jit(norm.rope)(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), got, rtol=2**-7, atol=2**-6)


def test_scores_after_rope_depend_on_distance_alone(rng):
    query, key = np.tile(rng.standard_normal((2, 1, 1, 1, 6)), (1, 1, 12, 1, 1)).astype(np.float32)
    scores = jnp.einsum("bqhc,bkhc->qk", *map(norm.rope, (query, key)), precision="highest")
    diagonals = [np.diagonal(scores, offset) for offset in range(-11, 12)]
    for diagonal in diagonals:
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-5)
    assert np.std([diagonal[0] for diagonal in diagonals]) > 1e-3
