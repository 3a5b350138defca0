"""Finds the token store of a text, or builds it so that nobody ever sees half of one.

It must never lock: two processes that build at once both finish, the first to rename wins and the
other throws its copy away. What a killed process leaves is a hidden folder that is never opened.
"""

import errno
import hashlib
import json
import shutil
import uuid
from pathlib import Path

from slicedice.data.embedded import Embedded
from slicedice.data.errors import DataError
from slicedice.data.sources import Source
from slicedice.data.store import FORMAT, TokenStore
from slicedice.data.tokenizer import Tokenizer, find_tokenizer
from slicedice.data.user_text import UserText
from slicedice.data.writer import write_store


def prepare(source: str, tokenizer: str, root: Path, heldout_fraction: float = 0.05) -> TokenStore:
    """Opens the token store of a text, and builds it first if it is not there.

    Args:
      source: "embedded", or the path of a file or folder of text.
      tokenizer: a name in `tokenizer.TOKENIZERS`.
      root: the folder that holds stores; it may be shared by many processes and machines.
      heldout_fraction: share of each domain's tokens to hold out, at least, in whole documents.

    Returns:
      The opened store.

    Raises:
      DataError: text that cannot be used, an unknown tokenizer, a full disk or a damaged store.
    """
    if not 0 < heldout_fraction <= 0.5:
        raise DataError(f"heldout_fraction is {heldout_fraction!r}. Valid is a number above 0, up to 0.5.")
    coder = find_tokenizer(tokenizer)
    text: Source = Embedded() if source == "embedded" else UserText(source)
    facts = json.dumps([text.identity(), tokenizer, heldout_fraction, FORMAT])
    path = Path(root) / hashlib.sha256(facts.encode()).hexdigest()[:12]
    if not path.exists():
        try:
            _build(path, text, coder, heldout_fraction)
        except OSError as error:
            raise DataError(_refusal(path.parent, source, error)) from error
    return TokenStore(path)


def _build(path: Path, source: Source, tokenizer: Tokenizer, heldout_fraction: float) -> None:
    """Writes a store beside `path` and renames it there, which either happens whole or not at all."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        write_store(temporary, source, tokenizer, heldout_fraction)
        try:
            temporary.rename(path)
        except OSError:
            # Another process was first. Its store has the same content, so this one is not needed.
            if not path.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refusal(root: Path, source: str, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full: the token store of {source} could not be written to {root}, and what was "
            "begun is removed. Free about twice the size of the text there, or choose another data folder."
        )
    return (
        f"The token store of {source} could not be written to {root}: {error.strerror or error}. Choose a "
        "folder for data in which you may create files."
    )
