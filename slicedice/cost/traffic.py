"""Bytes that a device receives from others in a step, by ring algorithms, counted by what the program sends.

Of g devices, gathering or scattering the sum of S bytes takes (g-1)/g * S, a sum that all get twice that.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from slicedice.cost.weights import FLOAT32, Weight, compute_bytes, weights
from slicedice.parallel.table import EXPERT, REPLICA, partition
from slicedice.spec import Execution, RunSpec

ROW_BYTES = 512
"""What a row that is sent by itself is filled up to a multiple of, on TPU: two of its tiles' rows of 256 bytes."""


def traffic(spec: RunSpec, execution: Execution) -> dict[str, int]:
    """Bytes by what they are for.

    parameters: gathered for use. gradients: added up, in float32. replicas: the same, over the axis of that name.
    tokens: to experts and back, with their gradients.
    """
    sizes = {name: size for name, size in execution.mesh_shape.as_dict().items() if size > 1}
    total: Counter[str] = Counter(parameters=0, gradients=0, replicas=0, tokens=0)
    if sizes:
        times = spec.budget.batch_size // (execution.mesh_shape.devices * execution.micro_batch)
        for weight in weights(spec):
            # The embedding and the head are put together once a step, layers in every micro-batch.
            for part, received in _of_weight(weight, sizes, times if weight.layers else 1):
                total[part] += round(received * weight.copies)
        total["tokens"] = times * _of_tokens(spec, execution, sizes)
    return dict(total)


def _of_weight(weight: Weight, mesh: Mapping[str, int], times: int) -> Iterator[tuple[str, float]]:
    """Of one copy of a parameter, whose gradient is taken `times` in a step."""
    over = partition(weight.axes, mesh)
    apart = {name for names in over for name in names}
    shard, size, moved = weight.size / _product(mesh, apart), weight.size, 0.0
    rest = _product(mesh, mesh.keys() - apart - {REPLICA})
    if weight.is_experts and EXPERT in mesh:
        n, peers = weight.axes[0][1], mesh[EXPERT]
        size = size // n * -(-n // peers)  # this device's own experts
        if EXPERT in apart and EXPERT not in over[0]:  # of which all devices have a part
            moved = (1 - 1 / peers) * size / _product(mesh, apart - {EXPERT})
        apart = apart - {EXPERT}
    moved += size * (1 - 1 / _product(mesh, apart))
    yield "parameters", times * moved * weight.bytes * (2 if weight.layers else 1)
    yield "gradients", FLOAT32 * (times * moved + 2 * (1 - 1 / rest) * shard)
    yield "replicas", FLOAT32 * 2 * (1 - 1 / mesh.get(REPLICA, 1)) * shard


def _product(mesh: Mapping[str, int], names: Iterable[str]) -> int:
    return math.prod(mesh[name] for name in names)


def _of_tokens(spec: RunSpec, execution: Execution, mesh: Mapping[str, int]) -> int:
    """Of one micro-batch."""
    sets, peers = spec.model.layer.experts, mesh.get(EXPERT, 1)
    tokens = execution.micro_batch * spec.data.sequence_length
    k, width = spec.model.layer.active, spec.model.d_model * compute_bytes(spec)
    if not sets or peers == 1:
        return 0
    # Forward, tokens go out and outputs come back; backward, gradients of outputs go out, and of tokens come back.
    # Tokens go out again for the backward pass, and if blocks are rematerialised, outputs come back again.
    times = 6 if execution.remat else 5
    if sends(spec, execution):
        row = -(-width // ROW_BYTES) * ROW_BYTES
        return spec.model.layers * round(tokens * k * (1 - 1 / peers)) * times * row
    # With a token go an index and a weight for each of its experts, and the weight's gradient comes back.
    index = sum(e.k * (2 if e.n < 2**15 else 4) for e in sets)
    return spec.model.layers * (peers - 1) * tokens * (times * width + 2 * (index + k * FLOAT32) + k * FLOAT32)


def sends(spec: RunSpec, execution: Execution) -> bool:
    """Whether tokens are sent to their experts, on an accelerator, rather than gathered by all; as the model does."""
    cheaper = spec.model.layer.active < execution.mesh_shape.expert
    return execution.dispatch == "send" or (not execution.dispatch and cheaper)
