"""Memory that a step takes of one TPU, by arithmetic: what its compiler reserves.

Arrays lie in tiles, so that narrow ones take more than their values do. Two moments of a micro-batch have most alive:
its logits, and the backward pass of a layer. How many buffers of a kind each has was read off the compiler's reports
for steps of every scale of the study, and fitted where several kinds go together; `benchmarks/compiled_steps.py` holds
the sum against the compiler.
"""

import math
from typing import NamedTuple

from slicedice.cost.traffic import sends
from slicedice.cost.weights import FLOAT32, compute_bytes, weights
from slicedice.parallel.table import EXPERT
from slicedice.spec import Execution, RunSpec

LANES, SUBLANES = 128, 8
"""What the last two axes of an array are filled up to multiples of."""

ROWS, GATHERED, HEADS, HIDDEN = 4, 2, 7, 6
"""Buffers of a layer in its backward pass: of rows of experts, of tokens of all devices of the expert axis, of queries
and the like by head, and of hidden values of what is always on."""

KEPT_HIDDEN = 2.5
"""The like of what is kept for it: the results of two products, and gaps."""

LOGITS = 1.35
"""Of logits and their gradient, over float32 logits: fused, the two are not there at once."""


def tpu_memory_parts(spec: RunSpec, execution: Execution, logit_bytes: int) -> dict[str, int]:
    """Bytes of a device by what they are for, as `footprint.memory_parts`.

    Args:
      spec: the run.
      execution: its mesh, micro-batch and rematerialisation.
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
        "activations": spec.model.layers * size * arrays.kept(execution.remat),
    }
    # With several micro-batches, what has been added up is there beside what is being computed. The head's gradient
    # comes first, the embedding's last.
    gradients = FLOAT32 * (several * (found.layers + found.tables) + found.head)
    of_layer = lasting | {
        "gradients": gradients + FLOAT32 * found.layers,
        "buffers": size * arrays.in_layer() + (found.one_layer * (size + FLOAT32) if mesh else 0),
    }
    of_logits = lasting | {
        "gradients": gradients,
        "buffers": round(LOGITS * min(logit_bytes, arrays.tokens * spec.model.vocab_size * FLOAT32)),
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

    tokens: how many there are. stream: of width D for each token. heads: queries, keys or values, by head. rows: of
    width D for the experts' assignments. gathered: of width D for the tokens of all devices of the expert axis.
    hidden: of what is always on.
    """

    tokens: int
    stream: int
    heads: int
    rows: int
    gathered: int
    hidden: int

    @classmethod
    def of(cls, spec: RunSpec, execution: Execution, mesh: dict[str, int]) -> "_Arrays":
        model, peers = spec.model, mesh.get(EXPERT, 1)
        tokens, width = execution.micro_batch * spec.data.sequence_length, _filled(model.d_model, LANES)
        room = min(execution.expert_slack, peers) if peers > 1 else 1
        exchanges = bool(model.layer.experts) and peers > 1
        return cls(
            tokens=tokens,
            stream=tokens * width,
            heads=tokens * model.heads * _filled(model.d_model // model.heads, LANES),
            rows=round(room * tokens * sum(e.k for e in model.layer.experts)) * width,
            gathered=tokens * width * (0 if not exchanges else 1 if sends(spec, execution) else peers),
            hidden=tokens * _filled(model.width(model.layer.generalist), LANES) if model.layer.generalist else 0,
        )

    def kept(self, remat: bool) -> int:
        """From the forward pass for the backward one: a layer's input, or the results of its products as well."""
        if remat:
            return self.stream
        products = 4 * self.stream + self.heads + self.rows + (self.stream if self.gathered else 0)
        return self.stream + products + round(KEPT_HIDDEN * self.hidden) + (self.stream if self.hidden else 0)

    def in_layer(self) -> int:
        """In the backward pass of one."""
        return ROWS * self.rows + GATHERED * self.gathered + HEADS * self.heads + HIDDEN * self.hidden


def _filled(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _tiled(shape: list[int]) -> int:
    """Values that an array is laid out as, the better of its last two axes along the lanes."""
    *rest, rows, columns = [1, *shape]
    across = _filled(rows, SUBLANES) * _filled(columns, LANES)
    along = _filled(columns, SUBLANES) * _filled(rows, LANES)
    return math.prod(rest) * min(across, along)
