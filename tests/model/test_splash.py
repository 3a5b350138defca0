"""JAX's attention kernel for TPU as we call it, interpreted: against attention written out, alone and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from slicedice.model import attention
from slicedice.model.splash import fits, splash


def _all_of(function, *arrays):
    *inputs, cotangent = arrays
    out, pull = jax.vjp(function, *inputs)
    return out, *pull(cotangent)


def _interpreted(query, key, value):
    return splash(query, key, value, interpret=True)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("positions", "heads", "width"), [(128, 3, 16), (256, 2, 40)])
def test_it_is_attention(devices: int, positions: int, heads: int, width: int, rng):
    arrays = [jnp.asarray(x, jnp.float32) for x in rng.standard_normal((4, 2, positions, heads, width))]
    want = jax.jit(lambda *x: _all_of(attention.causal_mix, *x))(*arrays)
    compute = jax.jit(lambda *x: _all_of(_interpreted, *x))
    if devices > 1:
        mesh, share = Mesh(np.asarray(jax.devices()[:devices]), ("data",)), PartitionSpec("data")
        compute = jax.jit(jax.shard_map(compute, mesh=mesh, in_specs=share, out_specs=share, check_vma=False))
    for got, expected in zip(compute(*arrays), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_other_lengths_are_left_to_jax(rng, monkeypatch: pytest.MonkeyPatch):
    assert [length for length in (7, 64, 128, 384, 512, 640, 1024, 2048, 2176) if fits(length)] == [
        128,
        384,
        512,
        1024,
        2048,
    ]
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    x = jnp.asarray(rng.standard_normal((1, 9, 2, 8)), jnp.float32)
    assert attention.causal_mix(x, x, x).shape == x.shape
