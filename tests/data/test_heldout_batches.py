from pathlib import Path

import numpy as np
import pytest

from slicedice.data import DataError, TokenStore, evaluation_batches, prepare


@pytest.mark.parametrize("domain", ["a", "b"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("max_tokens", [1, 29, 30, 31, 60, 10**9])
def test_each_target_counts_once(store: TokenStore, domain: str, batch_size: int, max_tokens: int):
    stream, length = store.heldout[domain].astype(np.int32), 10
    count = min(max_tokens, stream.size - 1)
    batches = list(evaluation_batches(store, domain, batch_size, length, max_tokens))
    assert len(batches) == -(-count // (batch_size * length))
    for tokens, mask, _ in batches:
        assert tokens.shape == (batch_size, length + 1)
        assert mask.shape == (batch_size, length)
        assert tokens.dtype == np.int32
        assert mask.dtype == bool
    targets = np.concatenate([tokens[:, 1:][mask] for tokens, mask, _ in batches])
    inputs = np.concatenate([tokens[:, :-1][mask] for tokens, mask, _ in batches])
    np.testing.assert_array_equal(targets, stream[1 : count + 1])
    np.testing.assert_array_equal(inputs, stream[:count])
    assert sum(batch.target_bytes for batch in batches) == np.sum(targets != store.end_of_document)


def test_padding_is_behind_the_text_and_masked(store: TokenStore):
    (tokens, mask, _) = next(iter(evaluation_batches(store, "a", 3, 10, 14)))
    assert mask.sum(axis=1).tolist() == [10, 4, 0]
    assert (tokens[1, 5:] == store.end_of_document).all()
    assert (tokens[2] == store.end_of_document).all()
    assert not (np.diff(mask.astype(int), axis=1) > 0).any()


def test_bytes_are_those_of_the_text_whatever_the_tokenizer(tmp_path: Path, monkeypatch):
    class Words:
        """Pairs of letters a-z, or single ones; the letter q is written as kw."""

        kind = identity = "words"
        content = b""
        vocab_size = 26 * 27 + 1
        end_of_document = 26 * 27
        byte_lengths = np.array([2] * 26 * 26 + [1] * 26 + [0])

        def encode(self, texts: list[str]) -> list[np.ndarray]:
            return [self._encode(text.replace("q", "kw")) for text in texts]

        def _encode(self, text: str) -> np.ndarray:
            codes = [ord(letter) - ord("a") for letter in text]
            pairs = [codes[i] * 26 + codes[i + 1] for i in range(0, len(codes) - 1, 2)]
            return np.array(pairs + [26 * 26 + code for code in codes[len(codes) // 2 * 2 :]])

    monkeypatch.setattr("slicedice.data.build.find_tokenizer", lambda name: Words())
    (tmp_path / "t.jsonl").write_text('{"text": "abcdxyz"}\n{"text": "zyxdcba"}\n')
    store = prepare(str(tmp_path / "t.jsonl"), "words", tmp_path / "stores")
    assert store.train.dtype == np.dtype("<u2")
    assert store.vocab_size == 703
    (batch,) = evaluation_batches(store, "t", 1, 16, 100)
    assert batch.mask.sum() == 4
    assert batch.target_bytes == 5  # Seven letters, of which the first token, two letters, is no target.

    # What the tokenizer rewrites counts as the bytes it was: here 8 stand for 7.
    (tmp_path / "u.jsonl").write_text('{"text": "aqaaaaa"}\n{"text": "bqbbbbb"}\n')
    store = prepare(str(tmp_path / "u.jsonl"), "words", tmp_path / "stores")
    (batch,) = evaluation_batches(store, "u", 1, 16, 100)
    assert batch.target_bytes == pytest.approx(6 * 7 / 8)


def test_requests_that_cannot_be_met(store: TokenStore):
    with pytest.raises(DataError, match=r"no domain 'c'.*Valid: a, b"):
        evaluation_batches(store, "c", 1, 10, 10)
    with pytest.raises(DataError, match="max_tokens is 0"):
        evaluation_batches(store, "a", 1, 10, 0)
