"""Finished runs that nobody trained, in a store, with parameters that make every part of the model matter."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice import export
from slicedice.data import prepare
from slicedice.model import Decoder
from slicedice.moe import RouterBias
from slicedice.spec import RunSpec, run_id
from slicedice.store import Kind, Store
from slicedice.training import Checkpoints

# Whatever loads what is written finds it here or nowhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Ours(NamedTuple):
    """A decoder taken apart, and the run that it is of."""

    spec: RunSpec
    graphdef: nnx.GraphDef
    params: nnx.State
    bias: nnx.State

    def logits(self, tokens: np.ndarray, params: nnx.State | None = None) -> jax.Array:
        model = nnx.merge(self.graphdef, self.params if params is None else params, self.bias)
        return model(jnp.asarray(tokens))[0]


@pytest.fixture
def ours(tiny, rng: np.random.Generator) -> Callable[..., Ours]:
    """A decoder of the tiny run with fields replaced: gains around 1, matrices that keep the scale of what they meet.

    Routers are sharper, so that choosing other experts, or weighing them otherwise, shows in the logits.
    """

    def leaf(path, shape):
        name = jax.tree_util.keystr(path)
        values = rng.standard_normal(shape.shape)
        if "scale" in name:
            values = 1 + 0.3 * values
        else:
            values = values * (2 if "router" in name else 1) / shape.shape[-2] ** 0.5
        return jnp.asarray(values, shape.dtype)

    def built(overrides: Mapping[str, Any] | None = None) -> Ours:
        spec, _ = tiny({"model.waive": "active_width", **(overrides or {})})
        shapes = nnx.eval_shape(lambda: Decoder(spec.model, key=jax.random.key(0)))
        graphdef, params, bias = nnx.split(shapes, nnx.Param, RouterBias)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), bias)
        return Ours(spec, graphdef, jax.tree.map_with_path(leaf, params), zeros)

    return built


SCORES = {"a": {"nats": 3.0, "bits_per_byte": 4.5, "targets": 7}, "macro": {"nats": 2.25, "bits_per_byte": 3.5}}


class Shelf:
    """A store of runs that are over, and the door."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]):
        self.folder, self.store, self._capture = folder, Store(folder / "runs").create(), capture

    def put(self, ours: Ours, execution, kind: Kind = Kind.DONE, fingerprint: str = "0123456789ab") -> str:
        """Adds a run with its finished model; returns its id."""
        run = self.store.run(ours.spec)
        run.create(ours.spec, execution)
        if kind.has_result:
            (run.path / "result.json").unlink(missing_ok=True)
            claim = run.claim()
            assert claim
            checkpoints = Checkpoints(claim.checkpoints)
            checkpoints.save_model(SimpleNamespace(params=ours.params, bias=ours.bias))  # pyright: ignore[reportArgumentType]
            checkpoints.close()
            origin = {"data_fingerprint": fingerprint, "device": "d", "git_revision": "abc", "finished": "now"}
            claim.finish(kind, {"steps": 6, "evaluation": {"held_out": SCORES}, "provenance": origin})
        return run_id(ours.spec)

    def export(self, run: str, folder: str = "out") -> tuple[int, str, str]:
        """Calls the door; returns its status and what it said on standard output and standard error."""
        self._capture.readouterr()
        store = str(self.store.root)
        status = export.main(["--run", run, "--to", "hf", "--store", store, str(self.folder / folder)])
        said = self._capture.readouterr()
        return status, said.out, said.err


@pytest.fixture
def shelf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shelf:
    return Shelf(tmp_path, capsys)


@pytest.fixture
def exported(shelf: Shelf, tiny) -> Callable[..., Path]:
    """Writes a model through the door and returns the folder."""

    def written(model: Ours, folder: str = "out", **facts: Any) -> Path:
        status, _, err = shelf.export(shelf.put(model, tiny()[1], **facts), folder)
        assert (status, err) == (0, "")
        return shelf.folder / folder

    return written


@pytest.fixture
def text(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of 60 short documents."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.txt").write_text("".join(rng.choice(list("abcdefgh  \n."), 80)) + str(i))
    return folder


@pytest.fixture
def prepared(shelf: Shelf, text: Path) -> Callable[[str], str]:
    """Prepares the text in the store with a tokenizer and returns its fingerprint."""
    return lambda tokenizer: prepare(str(text), tokenizer, shelf.store.data).fingerprint
