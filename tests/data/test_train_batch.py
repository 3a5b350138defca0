from pathlib import Path

import numpy as np
import pytest

from slicedice.data import DataError, TokenStore, prepare, train_batch
from slicedice.data.batches import _order

S = 17


def _windows(store: TokenStore) -> dict[bytes, int]:
    """The number of each window of the stream, by its content."""
    count = (store.train.size - 1) // S
    windows = {store.train[i * S : i * S + S + 1].astype(np.int32).tobytes(): i for i in range(count)}
    assert len(windows) == count, "windows of this text are not unique"
    return windows


def test_an_epoch_visits_each_window_once_and_begins_within_a_batch(store: TokenStore):
    numbers = _windows(store)
    n, batch_size = len(numbers), 5
    assert n % batch_size, "an epoch must end within a batch for this test"
    steps = -(-3 * n // batch_size)
    rows = np.concatenate([train_batch(store, 3, step, batch_size, S) for step in range(steps)])
    assert rows.dtype == np.int32
    assert rows.shape[1] == S + 1
    epochs = [[numbers[row.tobytes()] for row in rows[e * n : (e + 1) * n]] for e in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(n))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_step_is_the_same_however_it_is_reached(store: TokenStore):
    forward = [train_batch(store, 1, step, 4, S) for step in range(200)]
    _order.cache_clear()
    for step in (199, 3, 120):
        np.testing.assert_array_equal(train_batch(store, 1, step, 4, S), forward[step])
    halves = [train_batch(store, 1, 2 * 50 + half, 2, S) for half in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), forward[50])


def test_a_batch_larger_than_the_text(store: TokenStore):
    n = len(_windows(store))
    large = train_batch(store, 0, 0, 2 * n + 3, S)
    small = np.concatenate([train_batch(store, 0, step, 1, S) for step in range(2 * n + 3)])
    np.testing.assert_array_equal(large, small)


def test_seeds_differ(store: TokenStore):
    batches = [train_batch(store, seed, 0, 8, S).tobytes() for seed in (0, 1, 2**40, -1)]
    assert len(set(batches)) == len(batches)


def test_the_order_is_the_one_of_every_version_of_numpy():
    # From the published Philox4x64-10: a change here changes every result of every sweep.
    assert _order(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert _order(8, 5, 2).tolist() == [3, 5, 2, 7, 1, 0, 6, 4]


def test_a_caller_cannot_spoil_the_store_or_the_order(store: TokenStore):
    before = train_batch(store, 0, 0, 4, S)
    train_batch(store, 0, 0, 4, S)[:] = 0
    np.testing.assert_array_equal(train_batch(store, 0, 0, 4, S), before)
    with pytest.raises(ValueError, match="read-only"):
        store.train[0] = 1


def test_a_text_shorter_than_one_window(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text('{"text": "1234"}\n{"text": "5678"}\n')
    store = prepare(str(tmp_path / "t.jsonl"), "bytes", tmp_path / "stores")
    assert train_batch(store, 0, 9, 2, 4).shape == (2, 5)  # four bytes and end of document: one window
    with pytest.raises(DataError, match=r"has 5 tokens.*length 5 takes 6.*below 5"):
        train_batch(store, 0, 0, 2, 5)
