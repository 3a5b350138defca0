"""Cross-entropy on held-out text, in nats a token and bits a byte, for each domain and macro-averaged over domains."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from slicedice.data import TokenStore, evaluation_batches
from slicedice.evaluation.rows import Score
from slicedice.spec import RunSpec

if TYPE_CHECKING:  # whoever asks what there is to evaluate must not import JAX
    from slicedice.model import Decoder
    from slicedice.moe import Routing

Scores = dict[str, dict[str, Any]]
"""For each domain, and for "macro", their mean: `nats` a target, `bits_per_byte` of text, `targets`."""


def held_out(
    model: "Decoder", tokens: TokenStore, spec: RunSpec, routing: "Routing", *, batch_size: int
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
    from slicedice.evaluation.scoring import AS_TRAINED, scorers

    length = spec.data.sequence_length
    return {
        "held_out" if name == AS_TRAINED else name: evaluate(
            score, tokens, batch_size=batch_size, sequence_length=length, max_tokens=spec.evaluation.tokens
        )
        for name, score in scorers(model, spec, routing, length).items()
    }


def evaluate(score: Score, tokens: TokenStore, *, batch_size: int, sequence_length: int, max_tokens: int) -> Scores:
    """Cross-entropy on at most `max_tokens` held-out targets of every domain.

    Padding takes no expert's room and is not counted.
    """
    scores: Scores = {}
    for domain in tokens.domains:
        total, targets, size = 0.0, 0, 0.0
        for batch in evaluation_batches(tokens, domain, batch_size, sequence_length, max_tokens):
            total += float(np.asarray(score(batch.tokens, batch.mask, batch.mask), np.float64).sum())
            targets += int(batch.mask.sum())
            size += batch.target_bytes
        scores[domain] = entry(total, targets, size)
    return with_macro(scores)


def entry(nats: float, targets: int, size: float, **more: int) -> dict[str, Any]:
    """The scores of a domain: nats over its targets, bits over its bytes of text, and counts."""
    bits = nats / math.log(2) / size if size else math.nan
    return {"nats": nats / targets, "bits_per_byte": bits, "targets": targets, **more}


def with_macro(scores: Scores) -> Scores:
    """Adds "macro": the means over domains, each counting once, and the sums of what is counted."""
    of = {name: [score[name] for score in scores.values()] for name in next(iter(scores.values()))}
    macro = {name: sum(v) if isinstance(v[0], int) else sum(v) / len(v) for name, v in of.items()}
    return {**scores, "macro": macro}
