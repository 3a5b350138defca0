"""`transformers` on what the door writes computes what our model computes: logits, losses, gradients.

It is other people's code for the same architecture, so this is also the proof that the model is what it says.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from slicedice import export, hugging_face

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LAYERS = {
    "dense": {"model.experts": "dense"},
    "dense, four heads of two, wider FFN": {"model.experts": "dense", "model.heads": 4, "model.d_ff": 88},
    "k = 1": {"model.experts": "n=8 k=1 g=1"},
    "all experts active": {"model.experts": "n=4 k=4 g=1/4"},
    "all of more than eight": {"model.experts": "n=12 k=12 g=1/16"},
    "fine": {"model.experts": "n=32 k=8 g=1/8"},
    "finest, k above 8": {"model.experts": "n=24 k=16 g=1/16", "model.layers": 3},
    "one expert": {"model.experts": "n=1 k=1 g=1/2"},
    "one layer, one head, a padded vocabulary": {
        "model.experts": "n=6 k=2 g=1/4",
        "model.layers": 1,
        "model.heads": 1,
        "model.vocab_size": 300,
    },
    "bfloat16 in training": {"model.experts": "n=4 k=2 g=1/2", "compute_dtype": "bfloat16"},
}


def drawn(rng: np.random.Generator) -> dict[str, Any]:
    n, heads = int(rng.integers(2, 25)), int(rng.choice([1, 2, 4]))
    k, g = int(rng.integers(1, n + 1)), rng.choice(["1", "1/2", "1/4", "1/8", "1/16"])
    layers, width = int(rng.integers(1, 4)), heads * 2 * int(rng.integers(4, 9))
    return {
        "model.experts": f"n={n} k={k} g={g}",
        "model.layers": layers,
        "model.heads": heads,
        "model.d_model": width,
        "model.d_ff": 64,
        "data.sequence_length": int(rng.integers(2, 40)),
    }


@pytest.fixture(params=[*LAYERS, "drawn 1", "drawn 2", "drawn 3"])
def pair(request: pytest.FixtureRequest, ours, exported, rng: np.random.Generator):
    """Our model and theirs, and sequences [B, S + 1] for both in which no router is undecided."""
    fields = LAYERS.get(request.param) or drawn(rng)
    print(f"{fields}")
    mine = ours(fields)
    # What they choose by themselves takes widths that are multiples of 4 alone.
    aside = {"experts_implementation": "eager"} if "drawn" in request.param else {}
    theirs, report = loaded(exported(mine), **aside)
    assert not any(report.values()), report
    tokens = rng.integers(0, mine.spec.model.vocab_size, (12, mine.spec.data.sequence_length + 1))
    tokens[:, ::5] = 255  # where a document ends, the next begins
    tokens = tokens[decided(mine, theirs, tokens)]
    assert len(tokens) > 3
    return mine, theirs, tokens


def loaded(folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model as a user loads it, in evaluation mode, and what was missing or left over."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    return model.eval(), report


def decided(mine, theirs, tokens: np.ndarray) -> np.ndarray:
    """Of sequences, those whose last chosen expert leads the first that is not by more than rounding."""
    layer = mine.spec.model.layer
    chosen = layer.active
    if chosen == layer.count:
        return np.ones(len(tokens), bool)
    with torch.no_grad():
        out = theirs(torch.tensor(tokens), output_router_logits=True)
    sequences, logits = len(tokens), torch.stack(out.router_logits)  # [layers, B * S, E]
    best = logits.sort(-1, descending=True).values
    lead = (best[..., chosen - 1] - best[..., chosen]).reshape(len(logits), sequences, -1)
    return (lead.amin((0, 2)) > 1e-4).numpy()


def by_name(model: Any, of: Callable[[Any], Any]) -> dict[str, np.ndarray]:
    """What `of` takes from each of its parameters, by its name in a file, where experts lie one by one."""
    found = {}
    for name, parameter in model.named_parameters():
        value = of(parameter).detach().numpy()
        prefix, fused, part = name.partition(".mlp.experts.")
        if not fused:
            found[name] = value
            continue
        for expert, own in enumerate(value):
            pieces = dict(zip(("gate_proj", "up_proj"), np.split(own, 2), strict=True)) if "gate_up" in part else {}
            for word, array in (pieces or {"down_proj": own}).items():
                found[f"{prefix}{fused}{expert}.{word}.weight"] = array
    return found


def test_logits_and_gradients_agree(pair):
    """Gradients of each parameter, and each expert's, apart: one that is wrong would drown in a sum."""
    mine, theirs, tokens = pair

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        logits = mine.logits(tokens[:, :-1], params)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(tokens[:, 1:])).mean(), logits

    (value, logits), gradients = loss(mine.params)
    want = np.asarray(logits)
    other = theirs(torch.tensor(tokens[:, :-1])).logits
    got = other.detach().numpy()
    print("largest error of a logit", np.abs(got - want).max(), "of", np.abs(want).max())
    assert want.std() > 0.3
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
    error = torch.nn.functional.cross_entropy(other.flatten(0, 1), torch.tensor(tokens[:, 1:]).flatten())
    assert error.item() == pytest.approx(float(value), rel=1e-5)
    error.backward()
    want = dict(hugging_face.named(hugging_face.leaves(gradients)))
    got = by_name(theirs, lambda parameter: parameter.grad)
    assert got.keys() == want.keys()
    # The norm behind the experts takes out the scale of their sum, so that with k = 1 a router's gradient is what
    # rounding leaves of sums that cancel.
    least = 1e-2 * max(np.linalg.norm(array) for array in want.values())
    errors = {
        name: np.linalg.norm(got[name] - array) / max(np.linalg.norm(array), least) for name, array in want.items()
    }
    print("largest relative error of a gradient", max(errors.items(), key=lambda item: item[1]))
    assert not {name: error for name, error in errors.items() if not error < 1e-3}


def test_weights_of_experts_are_not_renormalised(ours, exported, rng: np.random.Generator):
    """The norm behind the layer takes out the scale of its output, so this shows only where that is near epsilon."""
    mine = ours({"model.experts": "n=16 k=4 g=1/4"})

    def smaller(path, leaf):
        return 2e-3 * leaf if "down" in jax.tree_util.keystr(path) else leaf

    mine = mine._replace(params=jax.tree.map_with_path(smaller, mine.params))
    theirs, _ = loaded(exported(mine))
    tokens = rng.integers(0, 256, (12, 16))
    tokens = tokens[decided(mine, theirs, tokens)]
    want = np.asarray(mine.logits(tokens))
    with torch.no_grad():
        got = theirs(torch.tensor(tokens)).logits.numpy()
        for module in theirs.modules():
            if hasattr(module, "norm_topk_prob"):
                module.norm_topk_prob = True
        renormalised = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
    assert np.abs(renormalised - want).max() > 0.1


def test_weights_are_to_the_bit(ours, exported):
    mine = ours({"model.experts": "n=4 k=2 g=1/2", "compute_dtype": "bfloat16"})
    model, _ = loaded(exported(mine))
    got, want = by_name(model, lambda p: p), dict(hugging_face.named(hugging_face.leaves(mine.params)))
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], array, err_msg=name)
    assert model.num_parameters() == mine.spec.model.parameters()
    assert not model.config.tie_word_embeddings


def test_the_balance_loss_is_ours_a_coefficient_apart(ours, exported, rng: np.random.Generator):
    mine = ours({"model.experts": "n=6 k=3 g=1/4", "model.layers": 1, "router.alpha": 0.3})
    model, _ = loaded(exported(mine))
    tokens = rng.integers(0, 256, (4, 16))
    with torch.no_grad():
        got = model(torch.tensor(tokens), output_router_logits=True).aux_loss.item()
    _, (aux,) = nnx.merge(mine.graphdef, mine.params, mine.bias)(jnp.asarray(tokens))
    assert aux.load_balancing_loss.item() > 1.001
    assert model.config.router_aux_loss_coef * got == pytest.approx(0.3 * aux.load_balancing_loss.item(), rel=1e-4)


def test_what_is_written_in_parts_is_read_whole(ours, exported, rng: np.random.Generator, monkeypatch):
    mine = ours({"model.experts": "n=4 k=2 g=1/2"})
    monkeypatch.setattr(export, "SHARD_BYTES", 40_000)
    folder = exported(mine)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()
    model, report = loaded(folder)
    assert not any(report.values()), report
    tokens = rng.integers(0, 256, (2, 16))
    with torch.no_grad():
        got = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(got, np.asarray(mine.logits(tokens)), atol=1e-4, rtol=0)
