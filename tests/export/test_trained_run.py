"""From training to text: what the worker trained and the door exported goes on in `transformers` as it does here."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice.model import Decoder
from slicedice.moe import RouterBias
from slicedice.store import Kind
from slicedice.training import Checkpoints
from slicedice.work import Worker

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH, NEW = 64, 40


@pytest.mark.parametrize("experts", ["dense", "n=8 k=4 g=1/4"])
def test_a_trained_run_writes_on_as_here(experts: str, tiny, shelf, text: Path, prepared):
    for path in text.iterdir():  # something to learn: a line that repeats, and then another
        path.write_text("".join(f"{path.stem} bottles on the wall\n" for _ in range(6)))
    fields = {
        "model.experts": experts,
        "model.d_model": 32,
        "data.source": str(text),
        "data.sequence_length": LENGTH,
        "budget.tokens": 60 * 8 * LENGTH,
        "optimizer.learning_rate": 1e-2,
    }
    prepared("bytes")
    spec, execution = tiny(fields)
    shelf.store.run(spec).create(spec, execution)
    id_ = shelf.store.run(spec).path.name
    assert Worker(shelf.store).train(id_) is Kind.DONE
    status, _, err = shelf.export(id_)
    assert (status, err) == (0, "")
    said = (shelf.folder / "out" / "README.md").read_text()
    scores = shelf.store.run(spec).result()["evaluation"]["held_out"]["macro"]
    assert f"{scores['nats']:.4f}" in said

    model = transformers.AutoModelForCausalLM.from_pretrained(shelf.folder / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shelf.folder / "out")
    prompt = "bottles on"
    asked = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**asked, max_new_tokens=NEW)[0]
    got = tokenizer.decode(written, skip_special_tokens=True)
    assert got == continued(spec, shelf, prompt)
    assert got.startswith(prompt)
    assert len(set(got[len(prompt) :])) > 3, "something was learned"


def continued(spec, shelf, prompt: str) -> str:
    """The prompt and what our model finds most likely, byte by byte, to the end of the document."""
    shapes = nnx.eval_shape(lambda: Decoder(spec.model, key=jax.random.key(0)))
    graphdef, params, bias = nnx.split(shapes, nnx.Param, RouterBias)
    params, bias = Checkpoints(shelf.store.run(spec).attempt().checkpoints).restore_model((params, bias))
    logits = jax.jit(lambda tokens: nnx.merge(graphdef, params, bias)(tokens)[0])
    tokens, known = np.zeros((1, LENGTH), np.int32), list(prompt.encode())
    while len(known) < len(prompt) + NEW:
        tokens[0, : len(known)] = known
        token = int(logits(jnp.asarray(tokens))[0, len(known) - 1].argmax())
        if token == 0xFF:
            break
        known.append(token)
    return bytes(known).decode(errors="replace")
