"""The embedded text, read and built once for all tests of the room, and a small text of two domains."""

import json
from pathlib import Path

import numpy as np
import pytest

from slicedice.data import TokenStore, prepare
from slicedice.data.embedded import Embedded
from slicedice.data.sources import Document
from tests.data.reading import documents


@pytest.fixture(scope="session")
def embedded_documents() -> list[Document]:
    return documents(Embedded())


@pytest.fixture(scope="session")
def embedded_store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare("embedded", "bytes", tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the domains `a` and `b`, whose documents are random letters, some not ASCII."""
    folder = tmp_path_factory.mktemp("text")
    draw = np.random.default_rng(0)
    for domain, count in {"a": 40, "b": 25}.items():
        records = (draw.choice(list("abcdefghéß漢😀 \n"), draw.integers(1, 200)) for _ in range(count))
        lines = (json.dumps({"text": "x" + "".join(record)}) for record in records)
        (folder / domain).mkdir()
        (folder / domain / "all.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def store(text: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(str(text), "bytes", tmp_path_factory.mktemp("stores"), 0.2)
