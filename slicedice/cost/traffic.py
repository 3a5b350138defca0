"""Bytes that a device receives from others in a step, by ring algorithms, counted by what the program sends.

Of g devices, gathering or scattering the sum of S bytes takes (g-1)/g * S, a sum that all get twice that.
"""

import math
from collections import Counter
from collections.abc import Mapping

from slicedice.cost.weights import FLOAT32, compute_bytes, weights
from slicedice.parallel.table import EXPERT, partition
from slicedice.spec import Execution, RunSpec


def traffic(spec: RunSpec, execution: Execution) -> dict[str, int]:
    """Bytes by what they are for.

    parameters: gathered for use. gradients: added up, in float32. tokens: to experts and back, with their gradients.
    """
    sizes = {name: size for name, size in execution.mesh_shape.as_dict().items() if size > 1}
    total: Counter[str] = Counter(parameters=0, gradients=0, tokens=0)
    if sizes:
        micro_batches = spec.budget.batch_size // (execution.mesh_shape.devices * execution.micro_batch)
        for part, received in (*_of_weights(spec, execution, sizes), *_of_tokens(spec, execution, sizes)):
            total[part] += round(micro_batches * received)
    return dict(total)


def _of_weights(spec: RunSpec, execution: Execution, mesh: Mapping[str, int]):
    for weight in weights(spec):
        over = partition(weight.axes, mesh)
        # Layers' parameters are gathered again for the backward pass.
        times = weight.layers * 2 if weight.layers else 1
        size = weight.size
        sharded = {name for names in over for name in names}
        if weight.is_experts and EXPERT in mesh:
            n, peers = weight.axes[0][1], mesh[EXPERT]
            size = size // n * -(-n // peers)  # of this device's experts alone
            if EXPERT in sharded and EXPERT not in over[0]:
                swapped = (peers - 1) / peers * size / math.prod(mesh[name] for name in sharded - {EXPERT})
                yield "parameters", times * weight.bytes * swapped
                yield "gradients", weight.copies * FLOAT32 * swapped
            apart = sharded - {EXPERT}
        else:
            apart = sharded
        parts = math.prod(mesh[name] for name in apart)
        yield "parameters", times * weight.bytes * size * (1 - 1 / parts)
        yield "gradients", weight.copies * FLOAT32 * size * (1 - 1 / parts)
        rest = math.prod(mesh[name] for name in mesh if name not in sharded)
        shard = weight.size / math.prod(mesh[name] for name in sharded)
        yield "gradients", weight.copies * FLOAT32 * 2 * (1 - 1 / rest) * shard


def _of_tokens(spec: RunSpec, execution: Execution, mesh: Mapping[str, int]):
    peers = mesh.get(EXPERT, 1)
    tokens = execution.micro_batch * spec.data.sequence_length
    others = (peers - 1) * tokens
    for e in spec.model.layer.experts:
        # Forward, tokens go out with an index and a weight for each of their experts, and outputs come back; backward,
        # gradients of outputs go out, and of tokens and weights come back. Rematerialised, the forward part is twice.
        there = spec.model.d_model * compute_bytes(spec)
        index = 2 if e.n < 2**15 else 4
        out = there + e.k * (index + FLOAT32)
        forward = (out + there) * (2 if execution.remat else 1)
        yield "tokens", spec.model.layers * others * (forward + 2 * there + e.k * FLOAT32)
