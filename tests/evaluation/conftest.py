"""A run, a model of it that is sure of what it says, and what tells its losses in another way."""

from typing import NamedTuple

import numpy as np
import pytest

from slicedice.data.tokenizer import ByteTokenizer
from slicedice.evaluation.rows import Score
from slicedice.evaluation.scoring import Scorer
from slicedice.model import Decoder
from slicedice.moe import Routing
from slicedice.spec import RunSpec
from tests.evaluation.models import Naive, sure_model

WINDOW = 16


class Bench(NamedTuple):
    """The shared model and ways to score with it."""

    spec: RunSpec
    model: Decoder
    naive: Naive
    scores: dict[str, Score]
    tokenizer: ByteTokenizer


@pytest.fixture(scope="session")
def bench(tiny) -> Bench:
    """A dropless model, scored in one way."""
    spec, _ = tiny({"model.experts": "n=4 g=1/2", "model.layers": 1, "router.group": 1})
    model = sure_model(spec, np.random.default_rng(0))
    scores: dict[str, Score] = {"as_trained": Scorer(model, Routing())}
    return Bench(spec, model, Naive(model, WINDOW), scores, ByteTokenizer())
