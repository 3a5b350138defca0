"""A trained model for other tools: `python -m slicedice.export --run ID --to hf DIR`.

Writes a folder that Hugging Face `transformers` loads, `AutoModelForCausalLM.from_pretrained(DIR)`: a dense run as
OLMo 2, one of a single set of experts as FlexOlmo, with its tokenizer. Needs neither torch nor `transformers`.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slicedice import __version__, copies, hugging_face, hugging_face_tokenizer, machine, provenance
from slicedice.commandline import door
from slicedice.data.tokenizer import Tokenizer, find_tokenizer
from slicedice.hugging_face import ExportError
from slicedice.spec import RunSpec, canonical_json, run_name
from slicedice.store import Kind, Store

SHARD_BYTES = 5_000_000_000
"""Largest file of weights."""

TRIED_TOKENS = 20_000
"""Held-out tokens of each domain on which a converted tokenizer is tried."""

NARROW = """
Experts of width {}, no multiple of 4, are beyond the default kernels of `transformers` on CPU: load the model with
`from_pretrained(DIR, experts_implementation="eager")` there.
"""

CONVERTED = """
`tokenizer.json` is converted from the SentencePiece model that the run was trained with, `tokenizer.model`, and in
corner cases cuts text otherwise. Of held-out documents it encodes {} of {} as the model does.
"""


@door
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    p = argparse.ArgumentParser(
        prog="python -m slicedice.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--run", required=True, help="id of a run in the store, the beginning of one, or its name")
    p.add_argument("--to", required=True, choices=["hf"], help="the format: hf is that of Hugging Face transformers")
    p.add_argument("--store", default="runs", help="folder where runs live (default: %(default)s)")
    p.add_argument("folder", metavar="DIR", help="where to write; must be empty, or not be there yet")
    options = p.parse_args(arguments)
    machine.settle_platform()
    print(export(Store(options.store), options.run, Path(options.folder)))
    return 0


def export(store: Store, wanted: str, folder: Path) -> str:
    """Writes the model of a run to `folder`, whole or not at all.

    Args:
      store: where the run is.
      wanted: its id, the beginning of one, or its name.
      folder: where to write; must be empty, or not be there yet.

    Returns:
      What was written, and what has to be known of it, a line each.

    Raises:
      ExportError: the run has no model, or one that `transformers` has no counterpart of; or `folder` is taken.
      StoreError: the run's spec cannot be read.
      DataError: its token store, with the tokenizer, cannot be opened.
    """
    id_ = find(store, wanted)
    spec, (state, result) = store.read_spec(id_), store.run(id_).look()
    called = f"{run_name(spec)} · {id_}"
    if reason := hugging_face.refusal(spec):
        raise ExportError(f"{called} cannot be exported: {reason}.")
    if state.kind is not Kind.DONE or result is None:
        because = f" ({state.reason})" if state.reason else ""
        raise ExportError(f"{called} has no finished model: it is {state.kind} after {state.steps} steps{because}.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ExportError(f"{folder} is there already. Name an empty folder, or one that does not exist yet.")
    tokenizer, texts = tokens_of(store, spec, result["provenance"]["data_fingerprint"])
    files = hugging_face_tokenizer.tokenizer_files(tokenizer, spec.data.sequence_length)
    remarks = [NARROW.format(width)] if (width := hugging_face.odd_width(spec)) else []
    equal = hugging_face_tokenizer.agreement(tokenizer, files, texts)
    end = tokenizer.end_of_document
    remarks += [CONVERTED.format(equal, len(texts))] if texts else []
    contents = {
        "config.json": _json(hugging_face.config(spec, end)).encode(),
        "generation_config.json": _json(hugging_face.generation_config(end)).encode(),
        "README.md": card(spec, id_, result, "".join(remarks)).encode(),
        **files,
    }
    arrays = dict(hugging_face.named(restore(store, id_, spec)))
    with _whole(folder) as partial:
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        write_weights(partial, arrays)
    return "\n".join([f"{called} · {folder}", *(" ".join(remark.split()) for remark in remarks)])


def find(store: Store, wanted: str) -> str:
    """The id of a run in the store, by what `Store.matching` goes by.

    Raises:
      ExportError: no run or several are called so.
    """
    found = store.matching(wanted)
    if not found:
        raise ExportError(
            f"there is no run {wanted!r} in {store.root}. `python -m slicedice.sweep status` lists names and ids."
        )
    if len(found) > 1:
        raise ExportError(f"{wanted!r} may be any of {len(found)} runs: {', '.join(found)}. Give the id.")
    return found[0]


def tokens_of(store: Store, spec: RunSpec, fingerprint: str) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a run, and where it has to be converted, held-out documents to try that on.

    Args:
      store: where the run is.
      spec: the run.
      fingerprint: of the tokens that it was trained on, which are found by it: the text may have changed since.

    Raises:
      ExportError: they are no longer in the store.
      DataError: the tokenizer's file is damaged.
    """
    if spec.data.tokenizer == "bytes":
        return find_tokenizer("bytes"), []
    tokens = copies.find_tokens(store, fingerprint)
    if tokens is None:
        raise ExportError(
            f"the tokens that the run was trained on, with their tokenizer, are not in {store.data} any more (their "
            f"fingerprint is {fingerprint}). Prepare the same text again."
        )
    if tokens.tokenizer.kind != "tokenizer.model":
        return tokens.tokenizer, []
    texts = []
    for heldout in tokens.heldout.values():
        some = heldout[:TRIED_TOKENS]
        ends = np.flatnonzero(some == tokens.end_of_document)
        texts += [tokens.tokenizer.decode(document.tolist()) for document in np.split(some, ends + 1)]
    return tokens.tokenizer, [text for text in texts if text]


def restore(store: Store, id_: str, spec: RunSpec) -> dict[str, np.ndarray]:
    """The parameters of a finished run by their path in the decoder, float32.

    Raises:
      ExportError: there are none, or they cannot be read.
    """
    import jax
    from flax import nnx

    from slicedice.model import Decoder
    from slicedice.moe import RouterBias
    from slicedice.training import CheckpointError, Checkpoints

    shapes = nnx.eval_shape(lambda: Decoder(spec.model, key=jax.random.key(0)))
    _, params, bias = nnx.split(shapes, nnx.Param, RouterBias)
    try:
        params, _ = Checkpoints(store.run(id_).attempt().checkpoints).restore_model((params, bias))
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    return hugging_face.leaves(params)


def write_weights(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as `model.safetensors`, or, above `SHARD_BYTES`, as parts with an index.

    Raises:
      ExportError: a file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    parts = hugging_face.shards({name: array.nbytes for name, array in arrays.items()}, SHARD_BYTES)
    files = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    files = files if len(parts) > 1 else ["model.safetensors"]
    for file, names in zip(files, parts, strict=True):
        # It writes the memory behind an array, in which a transposed one lies as it was.
        whole = {name: np.ascontiguousarray(arrays[name], np.float32) for name in names}
        try:
            save_file(whole, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise ExportError(f"{file} could not be written: {error}") from error
        shutil.copymode(folder / "config.json", folder / file)  # it leaves a file that its owner alone may read
    if len(parts) > 1:
        where = {name: file for file, names in zip(files, parts, strict=True) for name in names}
        size = sum(array.nbytes for array in arrays.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(_json(index))


def card(spec: RunSpec, id_: str, result: Mapping[str, Any], remark: str = "") -> str:
    """The README of an exported model: what it is, how good, of what, and how it was made; `remark` of its own."""
    losses = result["evaluation"]["held_out"]
    rows = (f"| {name} | {s['nats']:.4f} | {s['bits_per_byte']:.4f} |" for name, s in losses.items())
    origin = result["provenance"]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {run_name(spec)}

Layers: {" + ".join(map(str, spec.model.layer.experts)) or "dense"}. Trained by slicedice on {spec.tokens:,} tokens.

- run {id_}, finished {origin["finished"]} on {origin["device"]}
- code {origin["git_revision"] or "of an unknown revision"}
- text of the fingerprint {origin["data_fingerprint"]}: `{spec.data.source}`, tokenizer `{spec.data.tokenizer}`

| held out | nats a token | bits a byte |
|---|---|---|
{chr(10).join(rows)}

Written by `python -m slicedice.export --run {id_} --to hf` of slicedice {__version__}
({provenance.git_revision() or "no checkout"}). Weights are float32, as trained; training computed in
{spec.compute_dtype}.
{remark}
The run in full:

```json
{_json(json.loads(canonical_json(spec)))}```
"""


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when all is written, and is removed if anything fails."""
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise ExportError(f"{folder} cannot be a folder ({error.strerror}). Name one that can be made.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


if __name__ == "__main__":
    sys.exit(main())
