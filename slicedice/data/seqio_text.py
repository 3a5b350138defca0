"""A SeqIO task or mixture as a source: its tasks are the domains, its rates their shares of the tokens.

TensorFlow comes with it, and must never be imported by anything but the preparing of such a corpus.
"""

# SeqIO is there or not, and its types are loose: this is checked by tests.
# pyright: reportMissingImports=false, reportMissingModuleSource=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from etils import epath

from slicedice.data.account import Account
from slicedice.data.errors import DataError
from slicedice.data.sources import Document, Part, listing

FEATURES = ("text", "targets_pretokenized", "targets")
"""The features in which a task's text is looked for."""


class SeqioText:
    """What SeqIO calls `name`.

    Args:
      name: of a task or mixture, of `corpora` or of one's own.
      data_dir: where TFDS finds its data sets, and where the folders of `corpora.OLMOE` are; "" for TFDS's own default.
      module: the module that registers one's own tasks, or its file; "" for none.

    Raises:
      DataError: the extra `data` is not installed, or there is no such task or mixture.
    """

    def __init__(self, name: str, data_dir: str = "", module: str = "") -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow tells at length which GPU it lacks
        try:
            import seqio

            from slicedice.data import corpora
        except ImportError as error:
            raise DataError(
                f"seqio:{name} needs SeqIO and TensorFlow ({error}). Install the extra: pip install 'slicedice[data]'."
            ) from error
        self._module = _load(module) if module else ""
        if data_dir:
            corpora.Folder.data_dir = data_dir
        self.name = f"seqio:{name}"
        try:
            self._provider = seqio.get_mixture_or_task(name)
        except ValueError as error:
            known = ", ".join([*corpora.TFDS, "open_mix", *(f"olmoe_{part}" for part in corpora.OLMOE), "olmoe_mix"])
            raise DataError(
                f"SeqIO knows no task or mixture {name!r}. Here are {known}; others need --module."
            ) from error
        self._tasks: dict[str, Any] = {
            task.name: task for task in sorted(seqio.get_subtasks(self._provider), key=lambda task: task.name)
        }
        self._folder = corpora.Folder
        for task in self._tasks.values():
            if data_dir and hasattr(task.source, "tfds_dataset"):
                task.source.tfds_dataset.override_data_dir(data_dir)

    def identity(self) -> str:
        """See `Source.identity`: names, rates, files as far as SeqIO tells them, and the text of the module."""
        shares = self.shares()
        tasks = [(name, shares[name], self._files(name)) for name in sorted(self._tasks)]
        return json.dumps([self.name, self._module, tasks])

    def _files(self, name: str) -> Any:
        source = self._tasks[name].source
        if isinstance(source, self._folder):
            return source.source().identity()
        if hasattr(source, "tfds_dataset"):
            root = epath.Path(source.tfds_dataset.builder.data_path)
            found = sorted(root.iterdir()) if root.exists() else []
            return [source.tfds_dataset.name, listing(root, found)]
        shards = [Path(shard) for shard in map(str, source.list_shards("train")) if Path(shard).is_file()]
        return [str(source), [(str(shard), listing(shard.parent, [shard])) for shard in shards]]

    def shares(self) -> dict[str, float]:
        """See `Source.shares`: the rates of the mixture."""
        if len(self._tasks) == 1 and not hasattr(self._provider, "get_rate"):
            return dict.fromkeys(self._tasks, 1.0)
        return {name: float(self._provider.get_rate(task)) for name, task in self._tasks.items()}

    def parts(self) -> list[Part]:
        """See `Source.parts`: a file, or a task whose files are TFDS's or another's to read."""
        found = []
        for name, task in self._tasks.items():
            if isinstance(task.source, self._folder):
                for part in task.source.source().parts():
                    found.append(Part(f"{name}/{part.name}", name, part.size, partial(_of_domain, part, name)))
            else:
                found.append(Part(name, name, 0, partial(_of_task, task)))
        return found


def _of_domain(part: Part, domain: str, account: Account) -> Iterator[Document]:
    for document in part.read(account):
        yield document._replace(domain=domain)


def _of_task(task: Any, account: Account) -> Iterator[Document]:
    try:
        dataset = task.get_dataset(sequence_length=None, split="train", shuffle=False, use_cached=False)
    except Exception as error:  # whatever TFDS raises where a data set is not there
        raise DataError(
            f"seqio:{task.name} cannot be read ({type(error).__name__}: {error}). If it is a data set of TFDS, prepare "
            "it with `tfds build`, and say where it is with --data_dir."
        ) from error
    feature = next((name for name in FEATURES if name in dataset.element_spec), None)
    if feature is None or dataset.element_spec[feature].dtype.name != "string":
        raise DataError(
            f"seqio:{task.name} gives {dict(dataset.element_spec)}, and needs text: a string as {', '.join(FEATURES)}."
        )
    examples, number = dataset.as_numpy_iterator(), 0
    while True:
        number, where = number + 1, f"{task.name}:{number + 1}"
        try:
            example = next(examples, None)
        except Exception as error:  # whatever TensorFlow raises where a file is damaged
            account.add("damaged file", f"{where} cannot be read, nor what follows: {str(error).splitlines()[0]}")
            return
        if example is None:
            return
        try:
            text = example[feature].decode()
        except UnicodeDecodeError as error:
            account.add("not UTF-8", f"{where} is not UTF-8 ({error.reason}). Text must be UTF-8.")
            continue
        if text.strip():
            yield Document(task.name, where, text)
        else:
            account.note("blank", f"{where} is blank.")


def _load(module: str) -> str:
    """Imports a module by name, or the file of one; returns a digest of its file."""
    path = Path(module).expanduser()
    try:
        if path.suffix != ".py":
            path = Path(importlib.import_module(module).__file__ or "")
            return hashlib.sha256(path.read_bytes()).hexdigest()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[path.stem] = loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except Exception as error:  # whatever the user's file raises
        raise DataError(f"{module} cannot be imported: {type(error).__name__}: {error}.") from error
