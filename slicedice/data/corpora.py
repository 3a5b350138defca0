"""Public corpora as SeqIO tasks, and mixtures of them: the study's mix, and one that TFDS alone can give.

Importing this registers them with SeqIO, and imports TensorFlow: only what prepares such a corpus may do so.

| name | what it is |
|---|---|
| `c4`, `wikipedia`, `dolma` | as TFDS has them, with its `download_and_prepare` |
| `open_mix` | these three, in proportion to their tokens |
| `olmoe_dclm`, `olmoe_starcoder`, `olmoe_pes2o`, `olmoe_arxiv`, `olmoe_open_web_math`, `olmoe_algebraic_stack`, \
`olmoe_wiki` | the parts of OLMoE-mix-0924, which the study trained on, from a folder with a folder for each |
| `olmoe_mix` | the study's mix: plain concatenation, so in proportion to their tokens |
"""

# SeqIO is there or not, and its types are loose: this is checked by tests.
# pyright: reportMissingImports=false, reportMissingModuleSource=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false

import functools
from typing import Any

import seqio
import tensorflow as tf

from slicedice.data.account import Account
from slicedice.data.errors import DataError
from slicedice.data.user_text import UserText

TFDS = {
    "c4": ("c4/en:3.1.0", 156.0),
    "wikipedia": ("wikipedia/20230601.en:1.0.0", 3.7),
    "dolma": ("dolma:1.0.0", 2308.0),
}
"""What TFDS calls a corpus, and its tokens in billions: c4 by Dodge et al. (arXiv 2104.08758), the English Wikipedia as
in OLMoE's mix, Dolma 1.7 by its data sheet."""

OLMOE = {
    "dclm": ("dclm", 3860.0),
    "starcoder": ("starcoder", 101.0),
    "pes2o": ("pes2o", 57.2),
    "arxiv": ("arxiv", 21.1),
    "open_web_math": ("open-web-math", 12.7),
    "algebraic_stack": ("algebraic-stack", 12.6),
    "wiki": ("wiki", 3.69),
}
"""Folder of each part of OLMoE-mix-0924, and its tokens in billions (arXiv 2409.02060, table 2)."""

TEXT = {"targets": seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0)}
"""Tasks give text, not tokens, for the tokenizer is the user's to choose; by the name that most others have for it."""


class Folder(seqio.FunctionDataSource):
    """The texts of files in the folder `data_dir/name` or `data_dir/data/name`, local or in a bucket.

    `prepare` reads the files itself, so that it can name the file and line of what cannot be used.

    Args:
      name: of the folder.
    """

    data_dir = ""
    """Where the folders are; set before anything is read."""

    def __init__(self, name: str) -> None:
        self.folder = name
        super().__init__(functools.partial(_dataset, self), splits=["train"])

    def source(self) -> UserText:
        """The folder as a source.

        Raises:
          DataError: `data_dir` is not set, or has no such folder.
        """
        if not Folder.data_dir:
            raise DataError(f"Say where the folder {self.folder} is, with --data_dir.")
        root = Folder.data_dir.rstrip("/")
        try:
            return UserText(f"{root}/data/{self.folder}")
        except DataError:
            return UserText(f"{root}/{self.folder}")


def _dataset(folder: Folder, split: str, shuffle_files: bool) -> tf.data.Dataset:
    del split, shuffle_files  # there is one, and its order is that of its files

    def texts():
        for part in folder.source().parts():
            for document in part.read(Account(skip=False)):
                yield {"targets": document.text}

    return tf.data.Dataset.from_generator(texts, output_signature={"targets": tf.TensorSpec((), tf.string)})


def _only_text(dataset: Any) -> tf.data.Dataset:
    return dataset.map(lambda example: {"targets": example["text"]}, num_parallel_calls=tf.data.AUTOTUNE)


def _register() -> None:
    for name, (tfds_name, _) in TFDS.items():
        source = seqio.TfdsDataSource(tfds_name=tfds_name, splits=["train"])
        seqio.TaskRegistry.add(name, source=source, preprocessors=[_only_text], output_features=TEXT)
    for name, (folder, _) in OLMOE.items():
        seqio.TaskRegistry.add(f"olmoe_{name}", source=Folder(folder), preprocessors=[], output_features=TEXT)
    seqio.MixtureRegistry.add("open_mix", [(name, rate) for name, (_, rate) in TFDS.items()])
    seqio.MixtureRegistry.add("olmoe_mix", [(f"olmoe_{name}", rate) for name, (_, rate) in OLMOE.items()])


_register()
