"""From the ConfigDicts that people write to the frozen specs that code reads, validated once, here.

A field may be set to 0 or "" where the comment beside it says what then stands in.
"""

import math
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from ml_collections import ConfigDict

from slicedice.spec.errors import SpecError, require
from slicedice.spec.layer import LayerSpec, parse_layer
from slicedice.spec.mesh import MeshShape, parse_mesh
from slicedice.spec.model import ModelSpec
from slicedice.spec.run import (
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    Execution,
    OptimizerSpec,
    RouterSpec,
    RunSpec,
)

Config = Any
"""A `ConfigDict`, whose fields no type checker can know."""

EMBEDDED = "embedded"
"""The source that needs no files: the running Python's standard library."""

BYTES = "bytes"
"""The tokenizer that needs no file."""

IMPLEMENTATIONS = ("", "pallas_tpu", "pallas_gpu", "native", "blocks", "ragged_dot")
"""Of the grouped matmul; "" chooses by platform."""

DISPATCHES = ("", "gather", "send")
"""Of tokens to experts over a mesh; "" chooses by bytes."""

EVALUATION_SETS = (
    "c4_en",
    "dolma_books",
    "dolma_common-crawl",
    "dolma_pes2o",
    "dolma_reddit",
    "dolma_stack",
    "dolma_wiki",
    "ice",
    "m2d2_s2orc",
    "pile",
    "wikitext_103",
)
"""The study's evaluation sets; "paloma" names them all."""

EVALUATION_TASKS = ("boolq", "hellaswag", "mmlu")
"""The study's questions of multiple choice."""

ROUTERS = ("dropless", "default")
DTYPES = ("bfloat16", "float32")
ACTIVE_WIDTH = "active_width"
"""The check that a config may waive by name, in `model.waive`: that k*g, with the generalist, is 1."""


def study_config() -> Config:
    """The study's training set-up, to which a scale adds widths and tokens.

    Source: arXiv 2605.11689 and its authors' public code; `docs/study.md` says which value is from where.
    """
    config: Config = ConfigDict()
    config.scale = "custom"  # a label: names runs, never part of their id
    config.seed = 0  # of initial values and data order
    config.compute_dtype = "bfloat16"  # of activations; parameters stay float32

    model: Config = ConfigDict()
    config.model = model
    model.d_model = 0
    model.layers = 0
    model.heads = 0
    model.d_ff = 0  # 0: 4 * d_model
    model.vocab_size = 100_352  # 100,278 tokens, padded
    model.experts = "dense"  # or "n=32 k=4 g=1/4", sets joined by " + "; k may be left out
    model.generalist = ""  # granularity of an always-active expert
    model.wiring = "parallel"  # of the routed experts beside a generalist: parallel or plain
    model.waive = ""  # "active_width" allows layers whose active width is not d_ff

    router: Config = ConfigDict()
    config.router = router
    router.kind = "dropless"  # or "default": with a capacity
    router.capacity_factor = 1.2
    router.alpha = 1e-2  # weight of the load-balancing loss
    router.gamma = 0.0  # step of the loss-free bias
    router.z_loss = 1e-3
    router.group = 8  # sequences over which capacity and balance are counted; 0: the batch

    data: Config = ConfigDict()
    config.data = data
    data.source = "embedded"  # or a file or folder of text, or a corpus that was prepared, as in "seqio:c4"
    data.tokenizer = "bytes"  # or the path of a tokenizer.json or SentencePiece .model
    data.tokens = 0  # about how many to take of the source; 0: all
    data.sequence_length = 2048  # tokens
    data.heldout_fraction = 0.05  # of each domain's text, in whole documents

    optimizer: Config = ConfigDict()
    config.optimizer = optimizer
    optimizer.learning_rate = 4e-4  # peak
    optimizer.weight_decay = 0.1  # on everything
    optimizer.warmup_steps = 50
    optimizer.final_fraction = 0.1  # of the peak, at the end of the cosine
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.eps = 1e-8
    optimizer.clip = 1.0  # global norm
    optimizer.output_z_loss = 1e-5

    budget: Config = ConfigDict()
    config.budget = budget
    budget.tokens = 0  # to train on
    budget.batch_size = 512  # sequences

    evaluation: Config = ConfigDict()
    config.evaluation = evaluation
    evaluation.tokens = 1_048_576  # held-out targets of each domain, at most

    execution: Config = ConfigDict()
    config.execution = execution
    execution.micro_batch = 8  # sequences of one device at a time; 0: all of its share of the batch
    execution.remat = False  # compute each block again in the backward pass: less memory, more time
    execution.unroll = 1  # layers in one turn of the scan over layers
    execution.implementation = ""  # of the grouped matmul; "": by platform
    execution.lanes = 0  # runs of one program that a device trains at once; 0: as many as it pays to, on CPU one
    execution.checkpoint_seconds = 300.0
    execution.mesh = ""  # sizes of replica, data and expert, as in "data=8 expert=4"; "": one device
    execution.expert_slack = 2.0  # over the expert axis: rows that a device has room for, over their mean
    execution.dispatch = ""  # over the expert axis: gather, all tokens to all; send, each to its own; "": the cheaper
    # What a run is evaluated on beside its held-out text. It changes no weight, and `evaluate` does it any time later.
    execution.evaluation_sets = ""  # "paloma", some of its sets, files or folders of text, joined by commas
    execution.evaluation_tasks = ""  # some of boolq, hellaswag, mmlu, joined by commas
    execution.evaluation_data = ""  # folder of sets and tasks that are named
    execution.evaluate_every = 0  # steps, while training; 0: when it is over
    execution.writers = ""  # that show metrics while training: tensorboard, wandb, joined by commas
    return config.lock()


def resolve(config: Config) -> tuple[RunSpec, Execution]:
    """Validates `config` and returns the canonical spec and how to execute it.

    Raises:
      SpecError: a value is out of range or two do not fit; the message names the field.
    """
    c = config
    model, data, optimizer = _model(c), _data(c), _optimizer(c)
    budget = _budget(c)
    require(c.compute_dtype in DTYPES, "compute_dtype", c.compute_dtype, f"choose one of {', '.join(DTYPES)}")
    # It is a part of run names, which --only matches.
    require(re.fullmatch(r"[\w.+-]+", c.scale) is not None, "scale", c.scale, "use letters, digits and . + - _")
    require(0 <= c.seed < 2**32, "seed", c.seed, "use a whole number from 0 to 2**32 - 1")
    require(c.evaluation.tokens > 0, "evaluation.tokens", c.evaluation.tokens, "use a number above 0")
    router = _router(c.router, model.layer, budget)
    spec = RunSpec(
        scale=c.scale,
        seed=c.seed,
        compute_dtype=c.compute_dtype,
        model=model,
        router=router,
        data=data,
        optimizer=optimizer,
        budget=budget,
        evaluation=EvaluationSpec(c.evaluation.tokens),
    )
    return spec, _execution(c.execution, spec)


def _model(c: Config) -> ModelSpec:
    m = c.model
    for field in ("d_model", "layers", "heads", "vocab_size"):
        require(m[field] > 0, f"model.{field}", m[field], "use a number above 0")
    require(m.d_model % m.heads == 0, "model.heads", m.heads, f"it has to divide model.d_model = {m.d_model}")
    require(
        (m.d_model // m.heads) % 2 == 0,
        "model.heads",
        m.heads,
        "RoPE turns pairs: d_model / heads has to be even",
    )
    require(m.d_ff >= 0, "model.d_ff", m.d_ff, "use a number above 0, or 0 for 4 * model.d_model")
    d_ff = m.d_ff or 4 * m.d_model
    layer = parse_layer(m.experts, m.generalist, m.wiring)
    require(m.waive in ("", ACTIVE_WIDTH), "model.waive", m.waive, f'use "" or "{ACTIVE_WIDTH}"')
    require(
        layer.active_width == 1 or m.waive == ACTIVE_WIDTH,
        "model.experts",
        " + ".join(map(str, layer.experts)),
        f"its active width, the sum of k*g and the generalist, is {layer.active_width} of d_ff and has to be 1; "
        f'set model.waive = "{ACTIVE_WIDTH}" to allow it',
    )
    widths = [("model.experts g", e.g) for e in layer.experts]
    for field, g in [*widths, ("model.generalist", layer.generalist or Fraction(1))]:
        require((g * d_ff).denominator == 1, field, str(g), f"g * d_ff has to be whole, and d_ff = {d_ff}")
    return ModelSpec(m.d_model, m.layers, m.heads, d_ff, m.vocab_size, layer)


def _router(r: Config, layer: LayerSpec, budget: BudgetSpec) -> RouterSpec:
    require(r.kind in ROUTERS, "router.kind", r.kind, f"choose one of {', '.join(ROUTERS)}")
    for field in ("capacity_factor", "alpha", "gamma", "z_loss"):
        require(0 <= r[field] < math.inf, f"router.{field}", r[field], "use a number from 0")
    group = r.group or budget.batch_size
    require(
        group > 0 and budget.batch_size % group == 0,
        "router.group",
        r.group,
        f"it has to divide budget.batch_size = {budget.batch_size}",
    )
    if layer.is_dense:
        return RouterSpec(None, None, None, None, None, None)
    # With every expert on, the balance loss is the constant 1 and the bias chooses nothing.
    chooses = any(e.k < e.n for e in layer.experts)
    drops = r.kind == "default" and (chooses or r.capacity_factor < 1)
    return RouterSpec(
        kind="default" if drops else "dropless",
        capacity_factor=r.capacity_factor if drops else None,
        alpha=r.alpha if chooses else None,
        gamma=r.gamma if chooses else None,
        z_loss=r.z_loss,
        # Also where alpha is 0: the balance loss is recorded, and compared, without being trained on.
        group=group if drops or chooses else None,
    )


def _data(c: Config) -> DataSpec:
    d = c.data
    require(bool(d.source.strip()), "data.source", d.source, f'use "{EMBEDDED}" or the path of a file or folder')
    require(d.sequence_length > 0, "data.sequence_length", d.sequence_length, "use a number above 0")
    require(0 < d.heldout_fraction <= 0.5, "data.heldout_fraction", d.heldout_fraction, "use a share up to 0.5")
    require(bool(d.tokenizer.strip()), "data.tokenizer", d.tokenizer, f'use "{BYTES}" or the path of a tokenizer')
    require(
        d.tokens >= 0 and not (d.tokens and d.source == EMBEDDED),
        "data.tokens",
        d.tokens,
        f'use a number from 1, or 0 for all; "{EMBEDDED}" is taken as a whole',
    )
    return DataSpec(
        **{**d.to_dict(), "source": absolute(d.source), "tokenizer": absolute(d.tokenizer), "tokens": d.tokens or None}
    )


def absolute(text: str) -> str:
    """A source, tokenizer or folder as it is called from everywhere: paths are absolute, names and buckets stay."""
    return text if text in (EMBEDDED, BYTES) or ":" in text else os.path.abspath(os.path.expanduser(text))


def _optimizer(c: Config) -> OptimizerSpec:
    o = c.optimizer
    for field in ("learning_rate", "eps", "clip"):
        require(0 < o[field] < math.inf, f"optimizer.{field}", o[field], "use a number above 0")
    for field in ("weight_decay", "warmup_steps", "output_z_loss"):
        require(0 <= o[field] < math.inf, f"optimizer.{field}", o[field], "use a number from 0")
    for field in ("b1", "b2"):
        require(0 <= o[field] < 1, f"optimizer.{field}", o[field], "use a share from 0, below 1")
    require(0 <= o.final_fraction <= 1, "optimizer.final_fraction", o.final_fraction, "use a share from 0 to 1")
    return OptimizerSpec(**o.to_dict())


def _budget(c: Config) -> BudgetSpec:
    b = c.budget
    require(b.batch_size > 0, "budget.batch_size", b.batch_size, "use a number above 0")
    step = b.batch_size * c.data.sequence_length
    steps = round(b.tokens / step)
    require(steps > 0, "budget.tokens", b.tokens, f"one step takes {step:,} tokens: train for at least that many")
    return BudgetSpec(steps, b.batch_size)


def _execution(e: Config, spec: RunSpec) -> Execution:
    mesh = _mesh(e, spec)
    share, unit = spec.budget.batch_size // mesh.devices, spec.router.group or 1
    micro_batch = e.micro_batch or share
    whole = f"budget.batch_size = {spec.budget.batch_size}"
    require(
        micro_batch > 0 and share % micro_batch == 0 and micro_batch % unit == 0,
        "execution.micro_batch",
        e.micro_batch,
        f"it has to divide {whole if mesh.devices == 1 else f'the {share} sequences of a device'} and be a multiple "
        f"of router.group = {unit}",
    )
    require(
        e.implementation in IMPLEMENTATIONS, "execution.implementation", e.implementation, f"choose {IMPLEMENTATIONS}"
    )
    require(e.unroll > 0, "execution.unroll", e.unroll, "use a number above 0")
    require(e.lanes >= 0, "execution.lanes", e.lanes, "use a number of runs, or 0")
    require(e.checkpoint_seconds > 0, "execution.checkpoint_seconds", e.checkpoint_seconds, "use seconds above 0")
    require(e.evaluate_every >= 0, "execution.evaluate_every", e.evaluate_every, "use a number of steps, or 0")
    tasks = listed("execution.evaluation_tasks", e.evaluation_tasks, among=EVALUATION_TASKS)
    sets = listed("execution.evaluation_sets", e.evaluation_sets)
    named = [name for name in sets if name in ("paloma", *EVALUATION_SETS)]
    require(
        not named or bool(e.evaluation_data.strip()),
        "execution.evaluation_data",
        e.evaluation_data,
        f"name the folder that {', '.join(named)} can be found in",
    )
    writers = listed("execution.writers", e.writers)
    require(
        all(re.fullmatch(r"[a-z][a-z0-9_-]*", name) for name in writers),
        "execution.writers",
        e.writers,
        "name writers, such as tensorboard and wandb, joined by commas",
    )
    require(e.dispatch in DISPATCHES, "execution.dispatch", e.dispatch, f"choose {DISPATCHES}")
    require(1 <= e.expert_slack < math.inf, "execution.expert_slack", e.expert_slack, "use a number from 1")
    given = {
        "micro_batch": micro_batch,
        "mesh": str(mesh),
        "evaluation_sets": ",".join(name if name in named else absolute(name) for name in sets),
        "evaluation_tasks": ",".join(tasks),
        "evaluation_data": absolute(e.evaluation_data) if e.evaluation_data.strip() else "",
        "writers": ",".join(writers),
    }
    return Execution(**{**e.to_dict(), **given})


def _mesh(e: Config, spec: RunSpec) -> MeshShape:
    mesh = parse_mesh("execution.mesh", e.mesh)
    batch, unit = spec.budget.batch_size, spec.router.group or 1
    require(
        batch % (mesh.devices * unit) == 0,
        "execution.mesh",
        e.mesh,
        f"its {mesh.devices} devices have to share out budget.batch_size = {batch} sequences in whole routing groups "
        f"of {unit}: use a number of devices that divides {batch // unit}",
    )
    return mesh


def listed(field: str, text: str, among: Sequence[str] = ()) -> list[str]:
    """The names that a field or flag joins by commas.

    Args:
      field: what messages call it.
      text: its value.
      among: the names that there are; empty for any.

    Raises:
      SpecError: one is empty, there twice, or not `among` these.
    """
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    once = all(names) and len(set(names)) == len(names)
    require(once, field, text, "join names by commas, each once and none empty")
    known = f"choose some of {', '.join(among)}, joined by commas"
    require(not among or set(names) <= set(among), field, text, known)
    return names


class Fields(dict):
    """A config's fields as `resolve` reads them, by name or as attributes: a thousandth of what a ConfigDict costs."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return dict(self)


def override(config: Config, overrides: dict[str, Any], *, where: str) -> Fields:
    """Returns a copy of `config` with dotted fields replaced.

    Args:
      config: a ConfigDict, or what this function returned.
      overrides: values by dotted field.
      where: who asks for them.

    Raises:
      SpecError: a field does not exist or a value has another type.
    """
    copy = _fields(config)
    for field, value in overrides.items():
        *parents, leaf = field.split(".")
        node: Any = copy
        for parent in parents:
            node = node.get(parent) if isinstance(node, Fields) else None
        if not isinstance(node, Fields) or isinstance(node.get(leaf), Fields) or leaf not in node:
            valid = ", ".join(flat_fields(copy))
            raise SpecError(field, value, f"{where} sets it, and there is no such field: {valid}")
        kind = type(node[leaf])
        value = float(value) if kind is float and type(value) is int else value
        require(type(value) is kind, field, value, f"{where} sets it, and it has to be of type {kind.__name__}")
        node[leaf] = value
    return copy


def _fields(config: Config) -> Fields:
    return Fields((name, _fields(v) if isinstance(v, ConfigDict | Fields) else v) for name, v in config.items())


def flat_fields(config: Config) -> dict[str, Any]:
    """All leaves of `config` by dotted name."""
    leaves = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Fields):
            leaves |= {f"{key}.{name}": leaf for name, leaf in flat_fields(value).items()}
        else:
            leaves[key] = value
    return leaves
