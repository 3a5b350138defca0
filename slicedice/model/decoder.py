"""The OLMo2-style decoder: embeddings, scanned blocks, a norm, and a head of its own."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from slicedice.kernels.platform import platform
from slicedice.model import cudnn
from slicedice.model.attention import MIXED
from slicedice.model.block import Block
from slicedice.model.norm import RMSNorm
from slicedice.moe import LayerAux, Routing
from slicedice.moe.exchange import EXCHANGED
from slicedice.moe.experts import project, truncated_normal, weight
from slicedice.moe.layer import EXPERT_ROWS
from slicedice.parallel.gathering import gathered
from slicedice.parallel.mesh import axes
from slicedice.spec import ModelSpec

PRODUCTS = functools.reduce(
    jax.checkpoint_policies.save_from_both_policies,
    (
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(MIXED, EXPERT_ROWS, EXCHANGED),
        cudnn.is_kernel,
    ),
)
"""Results of matrix products are kept for the backward pass, of attention and of experts. The rest costs little to have
again, and in float32 would take five times their memory; parameters of other devices are gathered again."""


class Tables(NamedTuple):
    """The two largest parameters of a small model, whole: what a step puts together once for all its micro-batches."""

    embedding: Float[Array, "V D"]
    head: Float[Array, "D V"]


class Decoder(nnx.Module):
    """Tokens [B, S] to next-token logits [B, S, V] in float32.

    Every leaf of `blocks` has a leading axis of layers, over which the forward pass scans, so that the
    program does not grow with depth. Parameters are float32; activations are `compute_dtype`.
    """

    def __init__(self, spec: ModelSpec, *, compute_dtype: str = "float32", implementation: str = "", key: Array):
        init = truncated_normal()
        embed_key, head_key, blocks_key = jax.random.split(key, 3)
        self.compute_dtype, self.layers = jnp.dtype(compute_dtype), spec.layers
        self.embedding = weight(init, embed_key, vocabulary=spec.vocab_size, d_model=spec.d_model)
        self.blocks = jax.vmap(
            lambda key: Block(spec, init=init, implementation=implementation, rngs=nnx.Rngs(params=key))
        )(jax.random.split(blocks_key, spec.layers))
        self.norm = RMSNorm(spec.d_model)
        self.head = weight(init, head_key, d_model=spec.d_model, vocabulary=spec.vocab_size)

    def __call__(
        self, tokens: Int[Array, "B S"], *arguments: Any, **settings: Any
    ) -> tuple[Float[Array, "B S V"], LayerAux]:
        """Runs the model.

        Args:
          tokens: token ids.
          *arguments: as those of `hidden`.
          **settings: as those of `hidden`.

        Returns:
          Logits, and for each expert set a `SetAux` whose leaves have a leading axis of layers.
        """
        tables = self.tables()
        x, aux = self.hidden(tables, tokens, *arguments, **settings)
        return project(x, tables.head, jnp.float32), aux

    def tables(self) -> Tables:
        """Embedding and head, in the compute dtype."""
        return Tables(gathered(self.embedding, self.compute_dtype), gathered(self.head, self.compute_dtype))

    def hidden(
        self,
        tables: Tables,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"] | None = None,
        routing: Routing = Routing(),  # noqa: B008 - a NamedTuple of constants
        *,
        remat: bool = False,
        unroll: int = 1,
    ) -> tuple[Float[Array, "B S D"], LayerAux]:
        """Runs the model up to its last norm: what the head multiplies.

        Args:
          tables: the model's own.
          tokens: token ids.
          mask: False where a position is padding, which then takes no expert's room and is not counted.
          routing: capacity and routing groups.
          remat: keep only each block's input for the backward pass, and compute the block again.
          unroll: layers in one turn of the scan: more is faster to run and slower to compile.

        Returns:
          Values in the compute dtype, and for each expert set a `SetAux` whose leaves have a leading axis of layers.
        """
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask
        x = look_up(tables.embedding, tokens)

        # A kernel may read experts' matrices where all layers' lie, if they are used as they lie there.
        all_layers = jax.tree.map(jax.lax.stop_gradient, self.blocks.moe)
        as_they_lie = not axes() and x.dtype == jnp.float32

        def layer(x, numbered):
            block, index = numbered
            return block(x, mask, routing, all_layers.stacks(index) if as_they_lie else ())

        if remat:
            layer = jax.checkpoint(layer)
        elif axes() or platform() != "cpu":  # one CPU has memory enough, and is short of arithmetic
            layer = jax.checkpoint(layer, policy=PRODUCTS)
        numbered = self.blocks, jnp.arange(self.layers, dtype=jnp.int32)
        x, aux = jax.lax.scan(layer, x, numbered, unroll=unroll)
        return self.norm(x), aux


@jax.custom_vjp
def look_up(table: Float[Array, "V D"], tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """Rows of a table, whose gradient adds up in float32: some tokens are met thousands of times in a batch."""
    return table[tokens]


def _look_up_forward(table, tokens):
    return table[tokens], (tokens, table.shape[0])


def _look_up_backward(residuals, grad):
    tokens, rows = residuals
    total = jnp.zeros((rows, grad.shape[-1]), jnp.float32).at[tokens].add(grad.astype(jnp.float32))
    return total.astype(grad.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)
