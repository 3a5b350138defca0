"""Gradients of what is gathered in bfloat16 are added up over devices in float32."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slicedice.moe.experts import weight
from slicedice.parallel import placing
from slicedice.parallel.gathering import gathered
from slicedice.parallel.mesh import make_mesh


def test_gradients_that_bfloat16_would_lose_add_up():
    mesh = make_mesh({"replica": 1, "data": 8, "expert": 1}, jax.devices())
    assert mesh is not None
    parameter = weight(nnx.initializers.normal(), jax.random.key(0), d_model=16, heads=8)
    spec = placing.partition_specs(nnx.State({"w": parameter}), mesh)["w"].get_value()

    def gradient(shard: jax.Array) -> jax.Array:
        def loss(shard: jax.Array) -> jax.Array:
            # In bfloat16 256 and 1 are 256, in whatever order eight are added up but the best.
            slope = jnp.where(jax.lax.axis_index("data") == 0, 256, 1).astype(jnp.bfloat16)
            whole = gathered(nnx.Param(shard, **parameter.get_metadata()), jnp.bfloat16)
            assert (whole.shape, whole.dtype) == ((16, 8), jnp.bfloat16)
            return (whole * slope).sum()

        return jax.grad(loss)(shard)

    of_all = jax.shard_map(gradient, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    np.testing.assert_array_equal(jax.jit(of_all)(parameter[...]), np.full((16, 8), 256 + 7, np.float32))
