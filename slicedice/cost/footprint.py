"""Memory of one device, by arithmetic from the spec."""

import math

from slicedice.cost.rates import Rate
from slicedice.cost.tpu_footprint import tpu_memory_parts
from slicedice.cost.weights import FLOAT32, compute_bytes, weights
from slicedice.parallel.table import EXPERT
from slicedice.spec import Execution, RunSpec

# Of twelve steps on an H200 (benchmarks/measured_steps.py): of each pair of positions in a head, what attention's
# backward pass holds in float32, beside two values in the compute dtype; and how many values as wide as the model a
# token has in the block that is computed, and in one that is computed again.
SCORES, BLOCK, RECOMPUTED = 6, 26, 20

LOGIT_BYTES = 2**28
"""Of float32 logits at once, as `model.cross_entropy` has it, which is not imported for JAX's sake; a test compares."""


def memory(spec: RunSpec, execution: Execution, rate: Rate | None = None) -> int:
    """Bytes of a device in all; see `memory_parts`."""
    return sum(memory_parts(spec, execution, rate).values())


def memory_parts(spec: RunSpec, execution: Execution, rate: Rate | None = None) -> dict[str, int]:
    """Bytes of a device by what they are for.

    Args:
      spec: the run.
      execution: its mesh, micro-batch and rematerialisation.
      rate: of the device, if it is a TPU. Of others the arithmetic is held to one H200 alone.

    Returns:
      parameters: float32, this device's share. optimizer: AdamW's two moments, likewise.
      gradients: of the same, summed up and of one micro-batch, and of embedding and head whole.
      copies: parameters in the compute dtype.
      activations: kept for the backward pass of one micro-batch.
      buffers: of the layer that is being computed, attention's scores above all, or of logits.
    """
    if rate and rate.is_tpu:
        return tpu_memory_parts(spec, execution, rate.logits, LOGIT_BYTES)
    mesh = {name: size for name, size in execution.mesh_shape.as_dict().items() if size > 1}
    model, size = spec.model, compute_bytes(spec)
    shares = sum(weight.copies * math.prod(weight.shard(mesh)) for weight in weights(spec))
    table = model.vocab_size * model.d_model
    tokens = execution.micro_batch * spec.data.sequence_length
    inputs = tokens * model.d_model * size
    attention = tokens * model.heads * spec.data.sequence_length * (2 * size + SCORES)
    logits = min(LOGIT_BYTES, tokens * model.vocab_size * FLOAT32)
    return {
        "parameters": FLOAT32 * shares,
        "optimizer": 2 * FLOAT32 * shares,
        "gradients": FLOAT32 * (2 * shares + (2 * table if mesh else 0)),
        "copies": 2 * table * size if mesh or size != FLOAT32 else 0,
        "activations": model.layers * (inputs if execution.remat else tokens * _kept(spec)),
        "buffers": max(attention, 2 * logits)
        + (BLOCK + RECOMPUTED if execution.remat else BLOCK) * inputs
        + _exchanged(spec, execution, mesh),
    }


def _kept(spec: RunSpec) -> int:
    """Bytes that a token keeps of one block, as `model.decoder` has it.

    These are its input and products with attention's weights, what attention makes of them, rows for its experts, and
    what a generalist's hidden values are made of.
    """
    model = spec.model
    routed = sum(e.k * model.d_model for e in model.layer.experts)
    always_on = 2 * model.width(model.layer.generalist) if model.layer.generalist else 0
    return (6 * model.d_model + routed + always_on) * compute_bytes(spec)


def _exchanged(spec: RunSpec, execution: Execution, mesh: dict[str, int]) -> int:
    """Tokens of all devices of the expert axis, in the compute dtype and summed in float32."""
    peers = mesh.get(EXPERT, 1)
    if peers == 1 or not spec.model.layer.experts:
        return 0
    tokens = peers * execution.micro_batch * spec.data.sequence_length
    return tokens * spec.model.d_model * (compute_bytes(spec) + FLOAT32)
