"""The GPU kernels lowered for Hopper, without a GPU: at the study's shapes, under transformations, in the layer."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from slicedice.kernels import expert_ffn, grouped_matmul
from slicedice.moe import MoELayer, Routing
from slicedice.moe.experts import truncated_normal


def forward_and_back(rows, gate, up, down, sizes, alignment: int = 1):
    """The network, one grouped matmul, and the gradients of both, through the public functions."""

    def loss(rows, gate, up, down):
        how = {"implementation": "pallas_gpu", "alignment": alignment}
        out = expert_ffn(rows, gate, up, down, sizes, **how)
        return (out + grouped_matmul(rows, gate, sizes, **how) @ jnp.ones((gate.shape[2], 1), gate.dtype)).sum()

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(rows, gate, up, down)


def shapes(m: int, d: int, f: int, e: int, batch: tuple[int, ...] = ()):
    kinds = ((m, d), (e, d, f), (e, d, f), (e, f, d))
    return *(jax.ShapeDtypeStruct((*batch, *s), jnp.bfloat16) for s in kinds), jax.ShapeDtypeStruct(
        (*batch, e), jnp.int32
    )


def kernels(lowered) -> int:
    return lowered.as_text().count("custom_call @mosaic_gpu")


@pytest.mark.long
@pytest.mark.parametrize("alignment", [1, 8])
@pytest.mark.parametrize(
    ("m", "d", "f", "e"),
    [(65536, 832, 52, 2048), (65536, 832, 208, 512), (8192, 832, 3328, 8), (8192, 240, 15, 4096), (4096, 48, 3, 256)],
)
def test_lowers_at_the_shapes_of_the_study(m, d, f, e, alignment):
    traced = jax.jit(partial(forward_and_back, alignment=alignment)).trace(*shapes(m, d, f, e))
    # gmm and its gradients, the network in one kernel or two, and its gradients in four.
    assert kernels(traced.lower(lowering_platforms=("cuda",))) == 3 + (1 if f <= 128 else 2) + 4


@pytest.mark.long
def test_lowers_under_transformations():
    one = shapes(512, 64, 32, 4)
    count = kernels(jax.jit(forward_and_back).trace(*one).lower(lowering_platforms=("cuda",)))

    def lowered(function, arguments=one):
        return kernels(jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)))

    # Independent models are one call of more groups, not a loop or a call each.
    assert lowered(jax.vmap(forward_and_back), shapes(512, 64, 32, 4, batch=(3,))) == count
    everywhere = jax.sharding.PartitionSpec("x")
    sharded = jax.shard_map(
        lambda *arrays: jax.tree.map(lambda x: x[None], forward_and_back(*arrays)),
        mesh=jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=everywhere,
        out_specs=everywhere,
    )
    assert lowered(sharded) == count

    # Any promise of alignment, though only some help.
    for alignment in (2, 12, 16, 64, 128):
        assert lowered(partial(forward_and_back, alignment=alignment)) == count

    def checkpointed(rows, gate, up, down, sizes):
        @jax.checkpoint
        def layer(x, _):
            return expert_ffn(x, gate, up, down, sizes, implementation="pallas_gpu"), None

        return jax.grad(lambda x: jax.lax.scan(layer, x, None, length=3)[0].sum())(rows)

    assert lowered(checkpointed) >= 5


@pytest.mark.long
@pytest.mark.parametrize("f", [64, 200])
def test_lowers_where_numbers_are_64_bits(f: int):
    with jax.enable_x64(True):
        traced = jax.jit(forward_and_back).trace(*shapes(512, 96, f, 4))
        assert kernels(traced.lower(lowering_platforms=("cuda",))) == 3 + (1 if f <= 128 else 2) + 4


def test_training_in_bfloat16_stays_in_the_kernels():
    """Cotangents of the layer's experts are bfloat16 too: with any that is not, `blocks` would take its place."""
    layer = MoELayer(
        ((8, 2, 48),), 0, 64, init=truncated_normal(), implementation="pallas_gpu", rngs=nnx.Rngs(params=0)
    )
    graph, state = nnx.split(layer)

    def loss(state, x):
        out, _ = nnx.merge(graph, state)(x[None], jnp.ones((1, x.shape[0]), bool), Routing())
        return (out.astype(jnp.float32) ** 2).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(state, jax.ShapeDtypeStruct((512, 64), jnp.bfloat16))
    assert kernels(traced.lower(lowering_platforms=("cuda",))) == 1 + 4
