"""Windows and batches: every target once, with enough before it, in few shapes."""

import numpy as np
import pytest

from slicedice.evaluation.rows import Row, batches, lengths, summed, windows

PADDING = 255


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("size", [2, 8, 9, 10, 17, 40])
def test_each_target_counts_once_with_enough_before_it(size: int, stride: int):
    tokens, found = np.arange(size), []
    for row in windows(tokens, 1, 8, stride, "key"):
        assert 1 <= row.first < row.tokens.size <= 9
        assert np.array_equal(row.tokens, np.arange(row.tokens[0], row.tokens[0] + row.tokens.size))
        assert row.key == "key"
        if found:
            assert row.first >= 8 - stride + 1
        found += row.tokens[row.first :].tolist()
    assert found == list(range(1, size))


def test_what_does_not_count_makes_no_window():
    (row,) = windows(np.arange(30), 25, 8, 8, 0)
    assert (row.tokens.tolist(), row.first) == (list(range(24, 30)), 1)
    first, second = windows(np.arange(17), 6, 8, 8, 0)
    assert (first.first, first.tokens.tolist()) == (6, list(range(9)))
    assert (second.first, second.tokens.tolist()) == (1, list(range(8, 17)))


def test_lengths_are_halves_of_the_window():
    assert lengths(2048) == [128, 256, 512, 1024, 2048]
    assert lengths(12) == [3, 6, 12]
    assert lengths(7) == [7]
    assert lengths(1) == [1]


def draw_rows(rng: np.random.Generator, count: int, window: int) -> list[Row]:
    rows = []
    for i in range(count):
        size = int(rng.integers(2, window + 2))
        rows.append(Row(rng.integers(0, 200, size).astype(np.int32), int(rng.integers(1, size)), i))
    return rows


def test_batches_hold_each_row_once_and_mask_the_rest(rng: np.random.Generator):
    rows, seen = draw_rows(rng, 61, 16), {}
    for batch in batches(rows, 2, 16, PADDING):
        count, length = batch.text.shape
        assert count * length == 2 * 16, "a routing group has as many positions in every batch"
        assert length in lengths(16)
        assert batch.tokens.shape == (count, length + 1)
        assert batch.tokens.dtype == np.int32
        for i, key in enumerate(batch.keys):
            tokens, first, _ = rows[key]
            seen[key] = True
            assert length == min(n for n in lengths(16) if n >= tokens.size - 1)
            assert np.array_equal(batch.tokens[i, : tokens.size], tokens)
            assert (batch.tokens[i, tokens.size :] == PADDING).all()
            assert np.array_equal(batch.text[i], np.arange(length) < tokens.size - 1)
            assert np.array_equal(np.flatnonzero(batch.counted[i]) + 1, np.arange(first, tokens.size))
        assert not batch.text[len(batch.keys) :].any()
        assert not batch.counted[len(batch.keys) :].any()
    assert sorted(seen) == list(range(61))


def test_rows_are_read_as_batches_are_wanted():
    """Memory must not grow with a set: no more rows are taken than the batches of each length hold."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield Row(np.zeros(17, np.int32), 1, 0)

    made = batches(endless(), 2, 16, PADDING)
    for i in range(1, 4):
        next(made)
        assert taken == 2 * i


def test_sums_are_by_key_and_way(rng: np.random.Generator):
    rows = [row._replace(key=row.key % 5) for row in draw_rows(rng, 40, 16)]
    ways = {"count": lambda tokens, text, counted: counted.sum(1), "sum": lambda t, _, c: (t[:, 1:] * c).sum(1)}
    found = summed(rows, ways, batch_size=3, window=16, padding=PADDING)
    for key in range(5):
        own = [row for row in rows if row.key == key]
        assert found["count"][key] == sum(row.tokens.size - row.first for row in own)
        assert found["sum"][key] == sum(row.tokens[row.first :].sum() for row in own)
