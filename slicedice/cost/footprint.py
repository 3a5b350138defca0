"""Memory of one device, by arithmetic from the spec."""

import math

from slicedice.cost.tpu_footprint import tpu_memory_parts
from slicedice.cost.weights import FLOAT32, compute_bytes, weights
from slicedice.parallel.table import EXPERT
from slicedice.spec import Execution, RunSpec

LOGIT_BYTES = 2**28
"""Of float32 logits at once, as `model.cross_entropy` has it, which is not imported for JAX's sake; a test compares."""


def memory(spec: RunSpec, execution: Execution, *, tpu: bool = False) -> int:
    """Bytes of a device in all; see `memory_parts`."""
    return sum(memory_parts(spec, execution, tpu=tpu).values())


def memory_parts(spec: RunSpec, execution: Execution, *, tpu: bool = False) -> dict[str, int]:
    """Bytes of a device by what they are for.

    Args:
      spec: the run.
      execution: its mesh, micro-batch and rematerialisation.
      tpu: whether the device is one. Elsewhere this is a first estimate, of values that have to be somewhere.

    Returns:
      parameters: float32, this device's share. optimizer: AdamW's two moments, likewise.
      gradients: of the same, and of embedding and head whole.
      copies: parameters in the compute dtype.
      activations: kept for the backward pass of one micro-batch.
      buffers: of the layer that is being computed, or of logits.
    """
    if tpu:
        return tpu_memory_parts(spec, execution, LOGIT_BYTES)
    mesh = {name: size for name, size in execution.mesh_shape.as_dict().items() if size > 1}
    model, size = spec.model, compute_bytes(spec)
    shares = sum(weight.copies * math.prod(weight.shard(mesh)) for weight in weights(spec))
    table = model.vocab_size * model.d_model
    tokens = execution.micro_batch * spec.data.sequence_length
    block = tokens * _kept(spec)
    inputs = tokens * model.d_model * size
    kept = model.layers * inputs if execution.remat else model.layers * block
    logits = min(LOGIT_BYTES, tokens * model.vocab_size * FLOAT32)
    return {
        "parameters": FLOAT32 * shares,
        "optimizer": 2 * FLOAT32 * shares,
        "gradients": FLOAT32 * (shares + (2 * table if mesh else 0)),
        "copies": 2 * table * size if mesh or size != FLOAT32 else 0,
        "activations": kept,
        "buffers": (block if execution.remat else 0) + _exchanged(spec, execution, mesh) + 2 * logits,
    }


def _kept(spec: RunSpec) -> int:
    """Bytes that a token keeps in one block: about 12 values of width D in attention and norms, for each of its experts
    2 rows of width D and 2 of width F, and attention shares in float32 and in the compute dtype."""
    model, size = spec.model, compute_bytes(spec)
    routed = sum(e.k * (2 * model.d_model + 2 * model.width(e.g)) for e in model.layer.experts)
    always_on = 3 * model.width(model.layer.generalist) if model.layer.generalist else 0
    shares = model.heads * spec.data.sequence_length * (size + FLOAT32)
    return (12 * model.d_model + routed + always_on) * size + shares


def _exchanged(spec: RunSpec, execution: Execution, mesh: dict[str, int]) -> int:
    """Tokens of all devices of the expert axis, in the compute dtype and summed in float32."""
    peers = mesh.get(EXPERT, 1)
    if peers == 1 or not spec.model.layer.experts:
        return 0
    tokens = peers * execution.micro_batch * spec.data.sequence_length
    return tokens * spec.model.d_model * (compute_bytes(spec) + FLOAT32)
