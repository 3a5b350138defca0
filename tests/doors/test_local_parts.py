"""The launcher of this machine: which runs it gives a worker, and what it tells of those that come next."""

import pytest

from slicedice.machine import Slot
from slicedice.store import Kind
from tests.doors.pool import Pool, add


def test_each_worker_keeps_to_a_program_while_there_are_others(pool: Pool):
    """So that each is compiled by one of them; whoever has none left helps out."""
    queue = pool.local.Queue([pool.local.Part(program, [str(i)]) for i, program in enumerate("aabbcc")])
    asked = [("", "0"), ("", "2"), ("a", "1"), ("a", "4"), ("b", "3"), ("b", "5")]
    assert [queue.next(program).runs for program, _ in asked] == [[run] for _, run in asked]
    assert not queue


def test_on_accelerators_a_worker_is_told_what_may_come_of_another_program(pool: Pool, tiny, monkeypatch):
    """So that it compiles that while it trains; on CPU that would take its cores."""
    monkeypatch.setattr(pool.local, "slots", lambda *_: [Slot(frozenset(), {})])
    other = [add(pool.store, tiny({"seed": seed, "model.layers": 3})) for seed in range(2)]
    pool.ids[:] = [pool.ids[0], other[0], pool.ids[1], other[1]]
    pool.launch(*["done"] * 4)
    assert [note["runs"] for note in pool.notes("line")] == [[pool.ids[i]] for i in (0, 2, 1, 3)]
    pool.ids[:] = [add(pool.store, tiny({"seed": seed, "model.layers": n})) for n in (4, 5) for seed in range(2)]
    monkeypatch.setattr(pool.local, "has_accelerator", lambda: True)
    pool.launch(*["done"] * 4)
    a, b, c, d = pool.ids
    assert [note["runs"] for note in pool.notes("line")][4:] == [[a, b, "/", c, d], [c, d]]
    assert pool.kinds == [Kind.DONE] * 4


def test_what_may_come_next_is_first_what_nobody_has_compiled(pool: Pool):
    part = pool.local.Part
    queue = pool.local.Queue([part(program, [str(i)]) for i, program in enumerate("aabbcc")])
    first, second = queue.next(""), queue.next("")
    assert (first.program, second.program) == ("a", "b")
    assert queue.after(first).runs == queue.after(second).runs == ["4"]  # of c
    queue.next("c")
    assert queue.after(first).runs == ["3"]  # someone has begun with c too, and b comes first
    while queue:
        last = queue.next("c")
    assert queue.after(last) is None


def test_runs_that_are_trained_at_once_are_given_together(pool: Pool, tiny):
    pool.ids[:] = [add(pool.store, tiny({"seed": seed, "execution.lanes": 2})) for seed in range(10, 15)]
    pool.launch(*["done"] * 5)  # a unit each, as a sweep has it
    assert pool.kinds == [Kind.DONE] * 5
    lines = sorted(tuple(pool.ids.index(run) for run in note["runs"]) for note in pool.notes("line"))
    assert lines == [(0, 1), (2, 3), (4,)]


def test_on_accelerators_each_worker_is_given_its_share_of_a_program(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool.local, "has_accelerator", lambda: True)
    pool.launch(*["done"] * 5)
    lines = sorted(tuple(pool.ids.index(run) for run in note["runs"]) for note in pool.notes("line"))
    assert lines == [(0, 1, 2), (3, 4)]


@pytest.mark.parametrize(("workers", "sizes"), [(2, [2, 2, 3]), (3, [2, 2, 3]), (6, [1, 1, 1, 1, 1, 2]), (20, [1] * 7)])
def test_a_program_is_split_where_workers_would_have_none(
    workers: int, sizes: list[int], pool: Pool, tiny, monkeypatch
):
    """Otherwise its runs stay together, since those of several programs fill no lanes."""
    monkeypatch.setattr(pool.local, "has_accelerator", lambda: True)
    monkeypatch.setattr(pool.local, "slots", lambda *_: [Slot(frozenset(), {})] * workers)
    runs = [(layers, seed) for seed in range(3) for layers in (3, 4, 5)][:7]
    pool.ids[:] = [add(pool.store, tiny({"seed": seed, "model.layers": layers})) for layers, seed in runs]
    pool.launch(*["done"] * 7)
    lines = [" ".join(note["runs"]).partition("/")[0].split() for note in pool.notes("line")]
    assert sorted(map(len, lines)) == sizes
    for line in lines:
        assert len({pool.store.read_spec(run).model.layers for run in line}) == 1
