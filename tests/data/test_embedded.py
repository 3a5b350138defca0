import sys
from collections import defaultdict

import pytest

from slicedice.data import DataError, TokenStore
from slicedice.data.embedded import Embedded, _distinct
from tests.data.reading import documents


def _texts(tokens, end: int) -> list[str]:
    assert tokens[-1] == end
    return [part.decode() for part in tokens.tobytes()[:-1].split(bytes([end]))]


def test_every_document_is_on_one_side_and_whole(embedded_store, embedded_documents):
    store: TokenStore = embedded_store
    assert store.domains == ("code", "docstrings", "reference")
    # A text that two domains share would be ambiguous below; there is none.
    domain_of = {text: domain for domain, _, text, _ in embedded_documents}
    got = defaultdict(list)
    for text in _texts(store.train, store.end_of_document):
        got[domain_of[text]].append(text)
    for domain in store.domains:
        got[domain] += _texts(store.heldout[domain], store.end_of_document)
        assert sorted(got[domain]) == sorted({text for d, _, text, _ in embedded_documents if d == domain})


def test_a_module_is_held_out_in_both_domains_or_in_none(embedded_store, embedded_documents):
    store: TokenStore = embedded_store
    heldout = {d: set(_texts(store.heldout[d], store.end_of_document)) for d in store.domains}
    sides = defaultdict(set)
    for domain, _, text, group in embedded_documents:
        sides[group].add(text in heldout[domain])
    assert {group for group, side in sides.items() if len(side) > 1} == set()
    for domain in store.domains:
        size = sum(len(text.encode()) + 1 for d, _, text, _ in embedded_documents if d == domain)
        assert 0.05 <= store.heldout[domain].size / size < 0.15


def test_training_mixes_domains(embedded_store, embedded_documents):
    domain_of = {text: domain for domain, _, text, _ in embedded_documents}
    order = [domain_of[t] for t in _texts(embedded_store.train, embedded_store.end_of_document)]
    for part in (order[:150], order[-150:]):
        assert set(part) == set(embedded_store.domains)


def test_only_the_library_itself_is_read(embedded_documents):
    keys = {key for domain, key, _, _ in embedded_documents if domain != "reference"}
    assert {"argparse.py", "json/decoder.py"} <= keys
    folders = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
    assert [key for key in keys if folders & set(key.split("/"))] == []
    assert {key.split("/")[0].removesuffix(".py") for key in keys} <= set(sys.stdlib_module_names)


def test_code_does_not_hold_the_docstrings(embedded_documents):
    texts = {(domain, key): text for domain, key, text, _ in embedded_documents}
    for key in ("argparse.py", "asyncio/events.py", "json/decoder.py", "statistics.py"):
        lines = [line for line in texts["docstrings", key].splitlines() if len(line) > 50]
        assert lines
        assert [line for line in lines if line in texts["code", key]] == []


def test_no_topic_is_a_section_of_another(embedded_documents):
    topics = {key: text for domain, key, text, _ in embedded_documents if domain == "reference"}
    assert "compound" in topics
    assert {"try", "with", "if"} & set(topics) == set()


def test_order_and_identity_do_not_change_between_readings(embedded_documents):
    again = Embedded()
    assert again.identity() == Embedded().identity()
    for first, second in zip(embedded_documents[:40], documents(again), strict=False):
        assert first == second


def test_topics_that_a_longer_one_repeats_are_left_out():
    topics = {
        "whole": "Title\n*****\n\nA paragraph of some length.\n\nAnother paragraph of length.\n\nMore.",
        "part": "Title\n=====\n\nAnother paragraph of length.\n",
        "other": "Something\n\nelse altogether",
    }
    assert set(_distinct(topics)) == {"whole", "other"}


def test_an_interpreter_without_sources_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"holds no \.py files"):
        Embedded()


def test_an_interpreter_without_topics_is_told_so(tmp_path, monkeypatch):
    (tmp_path / "abc.py").write_text("x = 1\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"lacks.*path of your own text"):
        documents(Embedded())


def test_unparsable_modules_are_left_out(tmp_path, monkeypatch):
    (tmp_path / "abc.py").write_text("print 'two'\n")
    (tmp_path / "ast.py").write_bytes(b"# coding: no-such-thing\n")
    (tmp_path / "cmd.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "csv.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\n")
    (tmp_path / "sitecustomize.py").write_text("x = 1\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    found = [(key, text) for domain, key, text, _ in documents(Embedded()) if domain == "code"]
    assert found == [("csv.py", "# coding: latin-1\nx = 'é'\n")]
