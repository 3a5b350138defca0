"""Evaluation sets by name or path: the study's eleven as they lie in the public Paloma download, and any text.

Nothing here may read text before it is asked to, or import JAX: a sweep looks its sets up before anything is trained.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from slicedice.data import DataError
from slicedice.data.account import Account
from slicedice.data.sources import Document, Part, Source
from slicedice.data.user_text import UserText, suffix
from slicedice.spec.config import EVALUATION_SETS, EVALUATION_TASKS

PALOMA = "paloma"
"""What names all of the study's sets, of which results are a macro-average."""

HELD_OUT = "held_out"
"""The name of the evaluation of a run's own text."""

PLACES = {
    **{name: (f"{name}/val", name) for name in EVALUATION_SETS},
    "dolma_books": ("dolma-v1_5/val/val_books.jsonl.gz", "dolma_books/val", "dolma_books"),
    "dolma_common-crawl": (
        "dolma-v1_5/val/val_common-crawl.jsonl.gz",
        "dolma_common-crawl/val",
        "dolma_common-crawl",
    ),
    "dolma_pes2o": ("dolma-v1_5/val/val_pes2o.jsonl.gz", "dolma_pes2o/val", "dolma_pes2o"),
    "dolma_reddit": ("dolma-v1_5/val/val_reddit_uniform.jsonl.gz", "dolma_reddit/val", "dolma_reddit"),
    "dolma_stack": ("dolma-v1_5/val/val_stack_uniform.jsonl.gz", "dolma_stack/val", "dolma_stack"),
    "dolma_wiki": ("dolma-v1_5/val/val_wiki.jsonl.gz", "dolma_wiki/val", "dolma_wiki"),
    "m2d2_s2orc": ("m2d2_s2orc_unsplit/val", "m2d2_s2orc/val", "m2d2_s2orc"),
}
"""Files or folders that a set may be, below a folder of data or its sub-folder `paloma`; the first there is counts.

The study evaluates on validation text. The layout is that of allenai/paloma on Hugging Face, as OLMo-Eval's scripts
make it (`v3`, and `v3_small` for folders called as the sets): `SOURCE/val/*.jsonl.gz`, a file for each domain of Dolma.
ICE and the Pile are not in the public download. The study's M2D2 S2ORC may be the older split of OLMo's `v2_small`.
"""


class Collection:
    """Named domains of text, a `slicedice.data` source.

    Args:
      name: of the collection in results.
      texts: the text of each domain, or "" with one whose folders are the domains.
      missing: domains that belong to it and are not on disk.
    """

    def __init__(self, name: str, texts: dict[str, UserText], missing: tuple[str, ...] = ()):
        self.name, self.missing = name, missing
        self._texts = texts

    def identity(self) -> str:
        """See `Source.identity`."""
        return " ".join([self.name, *(f"{domain} {text.identity()}" for domain, text in self._texts.items())])

    def parts(self) -> list[Part]:
        """See `Source.parts`."""
        found = []
        for domain, text in self._texts.items():
            for part in text.parts():
                read = partial(_renamed, part, domain) if domain else part.read
                found.append(dataclasses.replace(part, domain=domain or part.domain, read=read))
        return found

    def shares(self) -> dict[str, float]:
        """See `Source.shares`: none, since all is read."""
        return {}


def _renamed(part: Part, domain: str, account: Account) -> Iterator[Document]:
    for document in part.read(account):
        yield document._replace(domain=domain)


def find_collection(wanted: str, data_dir: str) -> Collection:
    """Finds an evaluation set; reads no text.

    Args:
      wanted: "paloma", one of its sets, or the path of a file or folder of text.
      data_dir: folder of named sets.

    Raises:
      DataError: nothing is there, or its name is taken.
    """
    if wanted not in (PALOMA, *EVALUATION_SETS):
        path = Path(wanted).expanduser().absolute() if "://" not in wanted else Path(wanted)
        name = path.name.removesuffix(suffix(path))
        if name in (HELD_OUT, PALOMA, *EVALUATION_SETS, *EVALUATION_TASKS):
            raise DataError(
                f"{wanted} would be called {name!r}, which is a name with a meaning: {HELD_OUT} is a run's own text, "
                "the others are tasks or the study's sets, found by name below the data folder. Rename it, or use that."
            )
        return Collection(name, {"": UserText(wanted)})
    names = EVALUATION_SETS if wanted == PALOMA else (wanted,)
    places = {name: _place(name, data_dir) for name in names}
    texts = {name: UserText(str(place)) for name, place in places.items() if place}
    if not texts:
        tried = ", ".join(PLACES[names[0]])
        raise DataError(
            f"The evaluation set {wanted!r} is not below the data folder {data_dir or '(none is given)'}. "
            f"{names[0]}, for one, would be {tried}, there or in its sub-folder {PALOMA}."
        )
    return Collection(wanted, texts, tuple(name for name in names if name not in texts))


def _place(name: str, data_dir: str) -> Path | None:
    if not data_dir:
        return None
    roots = [Path(data_dir).expanduser(), Path(data_dir).expanduser() / PALOMA]
    return next((path for root in roots for place in PLACES[name] if (path := root / place).exists()), None)


_: type[Source] = Collection  # what `slicedice.data` reads
