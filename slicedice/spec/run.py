"""A run in full: `RunSpec` holds what can change a result in expectation, `Execution` how it is run.

Only the first makes a run's id, so nothing about machines may enter it, and nothing that changes results
may enter the second.
"""

from dataclasses import dataclass, field

from slicedice.spec.mesh import MeshShape, parse_mesh
from slicedice.spec.model import ModelSpec

LATER = {"later": True}
"""Marks a field that specs did not always have. It is no part of the id while it is None, so that older ids stay."""


@dataclass(frozen=True)
class RouterSpec:
    """How tokens reach experts. A field is None where it has no effect.

    kind: "dropless", or "default", which drops what exceeds an expert's capacity.
    capacity_factor: capacity over the mean load.
    alpha: weight of the load-balancing loss. gamma: step of the loss-free bias; 0 is off.
    z_loss: weight of the router z-loss.
    group: sequences over which capacity and the load-balancing loss are counted (a routing group, as in
      GShard). It is part of the science because both depend on it, while the micro-batch is not.
    """

    kind: str | None
    capacity_factor: float | None
    alpha: float | None
    gamma: float | None
    z_loss: float | None
    group: int | None


@dataclass(frozen=True)
class DataSpec:
    """Where text comes from and how it is cut.

    source: "embedded", a path, or "seqio:" and a name. tokenizer: "bytes" or a path.
    tokens: about how many are taken of the source, in the shares of its domains; None for all there are.
    """

    source: str
    tokenizer: str
    sequence_length: int
    heldout_fraction: float
    tokens: int | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW with clipping, linear warm-up and a cosine to `final_fraction` of the peak `learning_rate`."""

    learning_rate: float
    weight_decay: float
    warmup_steps: int
    final_fraction: float
    b1: float
    b2: float
    eps: float
    clip: float
    output_z_loss: float


@dataclass(frozen=True)
class BudgetSpec:
    """How long a run trains: `steps` of `batch_size` sequences."""

    steps: int
    batch_size: int


@dataclass(frozen=True)
class EvaluationSpec:
    """Held-out evaluation over at most `tokens` targets of each domain."""

    tokens: int


@dataclass(frozen=True)
class RunSpec:
    """One point of a grid, resolved and canonical: what is trained, on what, for how long."""

    scale: str
    seed: int
    compute_dtype: str
    model: ModelSpec
    router: RouterSpec
    data: DataSpec
    optimizer: OptimizerSpec
    budget: BudgetSpec
    evaluation: EvaluationSpec

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.budget.steps * self.budget.batch_size * self.data.sequence_length

    @property
    def flops(self) -> int:
        """Training FLOPs of the whole run."""
        return self.tokens * self.model.flops_per_token(self.data.sequence_length)


@dataclass(frozen=True)
class Execution:
    """How a run is executed; never part of its id.

    micro_batch: sequences of a device for one forward and backward pass; the rest of a batch is accumulated.
    remat: keep only each block's input for the backward pass, and compute the block again.
    unroll: layers in one turn of the scan over layers.
    implementation: grouped-matmul implementation by name; "" chooses by platform.
    lanes: runs of one program that a device trains at once, at most; 0 for as many as it pays to, on CPU one.
    checkpoint_seconds: time between checkpoints.
    mesh: sizes of the mesh's axes, as in "data=8 expert=4"; "" for one device.
    expert_slack: over the mesh's expert axis, rows that a device has room for, over their mean.
    dispatch: over that axis, "gather" for all tokens to all devices, "send" for each to its own, "" for the cheaper.
    evaluation_sets, evaluation_tasks: what the run is evaluated on beside its held-out text, joined by commas.
    evaluation_data: folder of sets and tasks that are named; "" if there is none.
    evaluate_every: steps between evaluations while it trains; 0 for when it is over alone.
    writers: what shows its metrics to people while it trains, joined by commas; "" for its own files alone.
    """

    micro_batch: int
    remat: bool
    unroll: int
    implementation: str
    checkpoint_seconds: float
    mesh: str = ""
    expert_slack: float = 2.0
    dispatch: str = ""
    evaluation_sets: str = ""
    evaluation_tasks: str = ""
    evaluation_data: str = ""
    evaluate_every: int = 0
    writers: str = ""
    lanes: int = 0

    @property
    def mesh_shape(self) -> MeshShape:
        """`mesh`, read."""
        return parse_mesh("execution.mesh", self.mesh)
