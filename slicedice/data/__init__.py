"""The data room: text becomes a token store once, and batches are read from it by arithmetic.

`prepare` tokenises a source (the embedded one, the user's own text, or a corpus that SeqIO reads) into a
memory-mapped `TokenStore`, which `open_store` opens again without the text; `train_batch` and
`evaluation_batches` read it. Every bad input ends in a `DataError`.

This room must never import another room of slicedice, JAX or a config library: the same store is
read by training, by evaluation and by plain scripts, on machines with and without an accelerator.
"""

from slicedice.data.batches import EvaluationBatch, evaluation_batches, train_batch
from slicedice.data.build import find_store, open_store, prepare
from slicedice.data.errors import DataError
from slicedice.data.store import TokenStore

__all__ = [
    "DataError",
    "EvaluationBatch",
    "TokenStore",
    "evaluation_batches",
    "find_store",
    "open_store",
    "prepare",
    "train_batch",
]
