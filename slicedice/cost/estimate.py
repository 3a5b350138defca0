"""The cost of one run, by arithmetic from its spec."""

from dataclasses import asdict, dataclass
from typing import Any

from slicedice.cost.rates import Rate
from slicedice.spec import Execution, RunSpec

FLOAT32 = 4


@dataclass(frozen=True)
class Cost:
    """What one run takes.

    parameters, active_parameters: both embeddings included. tokens, flops: of the whole training.
    bytes: memory of one device that holds everything. seconds: on one device.
    """

    parameters: int
    active_parameters: int
    tokens: int
    flops: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def cost(spec: RunSpec, execution: Execution, rate: Rate) -> Cost:
    """Estimates the cost of a run."""
    parameters = spec.model.parameters()
    return Cost(
        parameters=parameters,
        active_parameters=spec.model.parameters(active=True),
        tokens=spec.tokens,
        flops=spec.flops,
        bytes=memory(spec, execution),
        seconds=spec.flops / rate.sustained,
    )


def memory(spec: RunSpec, execution: Execution) -> int:
    """Bytes of parameters, gradients and AdamW's two moments, all float32, and of activations."""
    return 4 * FLOAT32 * spec.model.parameters() + activation_bytes(spec, execution)


def activation_bytes(spec: RunSpec, execution: Execution) -> int:
    """Bytes kept for the backward pass of one micro-batch: a first estimate, from the shapes of the layers.

    A token keeps about 12 values of width D in a block's attention and norms, H*S attention shares in float32 and
    in the compute dtype, and for each of its k experts 2 rows of width D and 2 of width F. Rematerialised blocks
    keep their input alone, and one block's worth is there at a time. Logits and their gradient are float32.
    """
    model, sequence = spec.model, spec.data.sequence_length
    tokens = execution.micro_batch * sequence
    size = 2 if spec.compute_dtype == "bfloat16" else FLOAT32
    routed = sum(e.k * (2 * model.d_model + 2 * model.width(e.g)) for e in model.layer.experts)
    always_on = 3 * model.width(model.layer.generalist) if model.layer.generalist else 0
    shares = model.heads * sequence * (size + FLOAT32)
    block = (12 * model.d_model + routed + always_on) * size + shares
    kept = model.layers * model.d_model * size + block if execution.remat else model.layers * block
    return tokens * (kept + 2 * FLOAT32 * model.vocab_size)
