"""Memory that a step takes of one TPU, by arithmetic: what its compiler reserves.

Arrays lie in tiles, so that narrow ones take more than their values do. Two moments of a micro-batch have most alive:
its logits, and the backward pass of a layer. What is kept from the forward pass was read off the compiler's reports,
array by array; how many buffers the backward pass of a layer has was fitted to steps of every scale of the study.
`benchmarks/compiled_steps.py` holds the sum against the compiler, also on steps that were not fitted to.
"""

import math
import operator
from typing import NamedTuple

from slicedice.cost.traffic import sends
from slicedice.cost.weights import FLOAT32, compute_bytes, weights
from slicedice.parallel.table import EXPERT
from slicedice.spec import Execution, RunSpec

LANES, SUBLANES = 128, 8
"""What the last two axes of an array are filled up to multiples of."""


class _Buffers(NamedTuple):
    """How many there are in the backward pass of a layer.

    rows: of rows of experts. gathered: of tokens of all devices of the expert axis. heads: of queries and the like by
    head. hidden: of hidden values of what is always on.
    """

    rows: float
    gathered: float
    heads: float
    hidden: float


AGAIN = _Buffers(rows=3.9, gathered=5.2, heads=5.7, hidden=6.7)
"""Where a layer is computed again: its experts have most, rows and tokens of both passes."""

KEPT = _Buffers(rows=3.2, gathered=0, heads=12.7, hidden=8.4)
"""Where its products were kept: attention has most, of queries and keys in float32, as they are turned by position."""


def tpu_memory_parts(spec: RunSpec, execution: Execution, logits: float, logit_bytes: int) -> dict[str, int]:
    """Bytes of a device by what they are for, as `footprint.memory_parts`.

    Args:
      spec: the run.
      execution: its mesh, micro-batch and rematerialisation.
      logits: what the chip's compiler holds of logits and their gradient, over logits in float32.
      logit_bytes: of float32 logits that are there at once, at most.
    """
    mesh = {name: size for name, size in execution.mesh_shape.as_dict().items() if size > 1}
    size, found = compute_bytes(spec), _parameters(spec, mesh)
    several = spec.budget.batch_size > execution.mesh_shape.devices * execution.micro_batch
    arrays = _Arrays.of(spec, execution, mesh)
    lasting = {
        "parameters": FLOAT32 * found.shards,
        "optimizer": 2 * FLOAT32 * found.shards,
        "copies": (size * found.layers if size != FLOAT32 else 0)
        + (size * found.tables if mesh or size != FLOAT32 else 0),
        "activations": spec.model.layers * arrays.kept(size, execution.remat),
    }
    # With several micro-batches, what has been added up is there beside what is being computed. The head's gradient
    # comes first, the embedding's last.
    gradients = FLOAT32 * (several * (found.layers + found.tables) + found.head)
    of_layer = lasting | {
        "gradients": gradients + FLOAT32 * found.layers,
        "buffers": size * arrays.in_layer(execution.remat) + (found.one_layer * (size + FLOAT32) if mesh else 0),
    }
    of_logits = lasting | {
        "gradients": gradients,
        "buffers": round(logits * min(logit_bytes, arrays.tokens * spec.model.vocab_size * FLOAT32)),
    }
    return max(of_layer, of_logits, key=lambda parts: sum(parts.values()))


class _Parameters(NamedTuple):
    """Values that parameters are laid out as.

    shards: a device's share of all. layers: of all layers. one_layer: what a device multiplies with in one.
    tables: embedding and head, whole. head: of these the one.
    """

    shards: int
    layers: int
    one_layer: int
    tables: int
    head: int


def _parameters(spec: RunSpec, mesh: dict[str, int]) -> _Parameters:
    model, all_ = spec.model, list(weights(spec))
    shards = {weight: weight.copies * _tiled(weight.shard(mesh)) for weight in set(all_)}
    own = [
        [-(-length // mesh.get(EXPERT, 1)) if name == "experts" else length for name, length in weight.axes]
        for weight in all_
        if weight.layers
    ]
    head = model.vocab_size * _filled(model.d_model, SUBLANES)
    return _Parameters(
        shards=sum(shards[weight] for weight in all_),
        layers=sum(shards[weight] for weight in all_ if weight.layers),
        one_layer=sum(map(_tiled, own)),
        tables=head + model.vocab_size * _filled(model.d_model, LANES),
        head=head,
    )


class _Arrays(NamedTuple):
    """Values of arrays of one layer and micro-batch, as they are laid out.

    Tokens lie along the lanes, where they need no filling up, unless they are apart by head or sorted by expert.

    tokens: how many there are. stream: of width D for each token. heads: queries, keys or values, by head. rows: of
    width D for the experts' assignments. results: the like of what experts made, as it is kept. gathered: of width D
    for the tokens of all devices of the expert axis. returned: of what all devices' experts made of a device's tokens,
    where they came back as a sum. hidden: of what is always on. choices: of routers.
    """

    tokens: int
    stream: int
    heads: int
    rows: int
    results: int
    gathered: int
    returned: int
    hidden: int
    choices: int

    @classmethod
    def of(cls, spec: RunSpec, execution: Execution, mesh: dict[str, int]) -> "_Arrays":
        model, peers = spec.model, mesh.get(EXPERT, 1)
        layer, tokens = model.layer, execution.micro_batch * spec.data.sequence_length
        stream, width = tokens * _filled(model.d_model, SUBLANES), _filled(model.d_model, LANES)
        room = min(execution.expert_slack, peers) if peers > 1 else 1
        exchanges = bool(layer.experts) and peers > 1
        sent = exchanges and sends(spec, execution)
        assignments = tokens * sum(e.k for e in layer.experts) * width
        return cls(
            tokens=tokens,
            stream=stream,
            heads=tokens * model.heads * _filled(model.d_model // model.heads, LANES),
            rows=round(room * assignments),
            # Of tokens that were sent, outputs that came back are kept, and not the rows that they were.
            results=assignments if sent else round(room * assignments),
            gathered=tokens * width * (0 if not exchanges else 1 if sent else peers),
            returned=stream if exchanges and not sent else 0,
            hidden=tokens * _filled(model.width(layer.generalist), SUBLANES) if layer.generalist else 0,
            choices=tokens * sum(_filled(e.n, SUBLANES) for e in layer.experts),
        )

    def kept(self, size: int, remat: bool) -> int:
        """Bytes from the forward pass for the backward one: a layer's input, or the results of its products as well."""
        if remat:
            return size * self.stream
        # Queries, keys, values, attention's output; what is always on has two products of its width, and its output.
        products = (5 if self.hidden else 4) * self.stream + self.heads + self.results + self.returned + 2 * self.hidden
        return size * (self.stream + products) + FLOAT32 * self.choices

    def in_layer(self, remat: bool) -> int:
        """In the backward pass of one."""
        count = AGAIN if remat else KEPT
        arrays = self.rows, self.gathered, self.heads, self.hidden
        return round(sum(map(operator.mul, count, arrays)))


def _filled(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _tiled(shape: list[int]) -> int:
    """Values that an array is laid out as, the better of its last two axes along the lanes."""
    *rest, rows, columns = [1, *shape]
    across = _filled(rows, SUBLANES) * _filled(columns, LANES)
    along = _filled(columns, SUBLANES) * _filled(rows, LANES)
    return math.prod(rest) * min(across, along)
