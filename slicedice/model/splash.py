"""Causal attention on TPU by JAX's own Pallas kernel, splash attention, which keeps scores on the chip."""

from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

MIXED = "mixed"
"""What attention's outputs are called for `jax.checkpoint`."""

BLOCK = 512
"""Positions in a block, at most."""

LANES = 128
"""What a block's positions are a multiple of."""


def fits(positions: int) -> bool:
    """Whether the kernel takes sequences of this length."""
    return positions % LANES == 0 and (positions <= BLOCK or positions % BLOCK == 0)


def splash(
    query: Float[Array, "B S H C"],
    key: Float[Array, "B S H C"],
    value: Float[Array, "B S H C"],
    *,
    interpret: bool = False,
) -> Float[Array, "B S H C"]:
    """Softmax attention over positions up to one's own, scores and sums in float32.

    Args:
      query: S has to be such that it `fits`.
      key: of the same shape.
      value: of the same shape.
      interpret: run without a TPU.
    """
    positions, heads, width = query.shape[1:]
    block = min(BLOCK, positions)
    attend: Any = kernel.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((positions, positions))] * heads),
        block_sizes=kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=MIXED,
        interpret=interpret,
    )
    query, key, value = (x.swapaxes(1, 2) for x in (query * width**-0.5, key, value))
    mixed: Any = jax.vmap(attend)(query, key, value)
    return mixed.swapaxes(1, 2)
