"""Cross-entropy in nats a token and in bits a byte, for each domain and macro-averaged over domains."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Int

from slicedice.data import TokenStore, evaluation_batches
from slicedice.model import Decoder
from slicedice.moe import Routing
from slicedice.spec import RunSpec

Scores = dict[str, dict[str, float]]
"""For each domain, and for "macro", their mean: `nats` a target, `bits_per_byte` of text, `targets`."""


def held_out(
    model: Decoder, tokens: TokenStore, spec: RunSpec, routing: Routing, *, batch_size: int
) -> dict[str, Scores]:
    """Evaluates a trained model as its run asks for.

    A model trained with a capacity is evaluated both with it and without, since much of what dropping costs
    may be dropping at evaluation.

    Args:
      model: the trained model.
      tokens: the token store it was trained on.
      spec: its run.
      routing: its routing in training.
      batch_size: sequences at a time, a multiple of the routing group.

    Returns:
      Scores under "held_out", and for such a model also under "without_capacity".
    """

    def scores(routing: Routing) -> Scores:
        return evaluate(
            model,
            tokens,
            routing,
            batch_size=batch_size,
            sequence_length=spec.data.sequence_length,
            max_tokens=spec.evaluation.tokens,
        )

    if routing.capacity_factor is None:
        return {"held_out": scores(routing)}
    return {"held_out": scores(routing), "without_capacity": scores(Routing())}


def evaluate(
    model: Decoder,
    tokens: TokenStore,
    routing: Routing,
    *,
    batch_size: int,
    sequence_length: int,
    max_tokens: int,
) -> Scores:
    """Cross-entropy on at most `max_tokens` held-out targets of every domain.

    Padding takes no expert's room and is not counted.
    """
    graphdef, state = nnx.split(model)
    scores: Scores = {}
    for domain in tokens.domains:
        total, targets, size = 0.0, 0, 0
        for batch in evaluation_batches(tokens, domain, batch_size, sequence_length, max_tokens):
            total += float(_summed(graphdef, routing, state, jnp.asarray(batch.tokens), jnp.asarray(batch.mask)))
            targets += int(batch.mask.sum())
            size += batch.target_bytes
        scores[domain] = {
            "nats": total / targets,
            "bits_per_byte": total / math.log(2) / size if size else math.nan,
            "targets": targets,
        }
    macro = {name: sum(s[name] for s in scores.values()) / len(scores) for name in ("nats", "bits_per_byte")}
    return {**scores, "macro": {**macro, "targets": sum(s["targets"] for s in scores.values())}}


@partial(jax.jit, static_argnums=(0, 1))
def _summed(
    graphdef: nnx.GraphDef,
    routing: Routing,
    state: nnx.State,
    tokens: Int[Array, "B S1"],
    mask: Bool[Array, "B S"],
) -> Array:
    """Cross-entropy summed over the targets in `mask`. A padded target's input is padding as well."""
    logits, _ = nnx.merge(graphdef, state)(tokens[:, :-1], mask, routing)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.where(mask, losses, 0.0).sum()
