"""Cross-entropy in nats a token and in bits a byte, for each domain and macro-averaged over domains."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Int

from slicedice.data import TokenStore, evaluation_batches
from slicedice.model import Decoder
from slicedice.moe import Routing


@dataclass(frozen=True)
class Evaluation:
    """Held-out results. `nats` is a target token's mean cross-entropy, `bits_per_byte` of the text it stands for."""

    nats: dict[str, float]
    bits_per_byte: dict[str, float]
    targets: dict[str, int]

    @property
    def macro_nats(self) -> float:
        """The mean over domains, each counting alike."""
        return sum(self.nats.values()) / len(self.nats)

    @property
    def macro_bits_per_byte(self) -> float:
        """The mean over domains, each counting alike."""
        return sum(self.bits_per_byte.values()) / len(self.bits_per_byte)


def evaluate(
    model: Decoder,
    tokens: TokenStore,
    routing: Routing,
    *,
    batch_size: int,
    sequence_length: int,
    max_tokens: int,
) -> Evaluation:
    """Evaluates on at most `max_tokens` held-out targets of every domain.

    Padding takes no expert's room and is not counted. With a capacity in `routing`, it is counted over the
    same routing groups as in training.
    """
    graphdef, state = nnx.split(model)
    nats, bits, targets = {}, {}, {}
    for domain in tokens.domains:
        total, count, size = 0.0, 0, 0
        for batch in evaluation_batches(tokens, domain, batch_size, sequence_length, max_tokens):
            total += float(_summed(graphdef, routing, state, jnp.asarray(batch.tokens), jnp.asarray(batch.mask)))
            count += int(batch.mask.sum())
            size += int(batch.target_bytes)
        nats[domain], targets[domain] = total / count, count
        bits[domain] = total / math.log(2) / size
    return Evaluation(nats, bits, targets)


@partial(jax.jit, static_argnums=(0, 1))
def _summed(
    graphdef: nnx.GraphDef, routing: Routing, state: nnx.State, tokens: Int[Array, "B S1"], mask: Bool[Array, "B S"]
) -> Array:
    """Cross-entropy summed over the targets in `mask`. A padded target's input is padding as well."""
    logits, _ = nnx.merge(graphdef, state)(tokens[:, :-1], mask, routing)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.where(mask, losses, 0.0).sum()
