"""The verb logs: of a run, and of its engine."""

import unicodedata

import pytest

from slicedice import operating
from slicedice.store import Launch, Store
from slicedice.store.launches import write_launch
from tests.doors.cluster import Engine, submit


def test_logs_are_the_runs_own_and_the_engines(cluster):
    submit(cluster)
    store = Store(cluster.folder / "runs")
    run = store.matching("smoke-dense-*")[0]
    told = cluster.sweep("logs", "smoke-dense-seed0", grid="", launcher="cluster", scale="")
    assert "it has not begun" in told.out
    assert "job0 says hello" in told.out
    store.run(run).log_of(0).write_text("first line\n[bold]last\n")
    assert "[bold]last" in cluster.sweep("logs", run[:6], grid="", scale="").out
    for name in ("smoke-*", "nothing"):
        call = cluster.sweep("logs", name, grid="", scale="")
        assert call.status == 2
        assert name in call.err


def test_the_tail_of_a_log_is_what_is_printed(desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(operating, "TAIL_LINES", 2)
    desk.sweep()
    store = Store(desk.folder / "runs")
    store.run(store.ids()[0]).log_of(0).write_text("a line\nanother\nthe last\n")
    Engine(desk, "fake", logs='return "one\\ntwo\\nthree\\n"')
    name = store.next_launch("later")
    write_launch(Launch(name, store.launch_folder(name), "fake", {}, ((store.ids()[0],),), ("u",)), {})
    said = desk.sweep("logs", store.ids()[0], grid="", scale="").out
    assert "a line" not in said
    assert "another\nthe last" in said
    assert "one" not in said
    assert said.endswith("two\nthree\n")


def test_a_log_that_is_written_for_a_terminal_is_printed_as_text(cluster):
    """Of a store that is somebody else's, sequences of a terminal could write its title, its clipboard and more."""
    Engine(cluster, "engine", logs="return 'theirs\\x1b]52;c;ZXZpbA==\\x07end'")
    cluster.sweep(launcher="engine")
    store = Store(cluster.folder / "runs")
    (run,) = store.matching("smoke-dense-*")
    store.run(run).log_of(0).write_text("own\x1b[2J\x9b31mred\x00\x7f\ttabbed é\n")
    (store.run(run).path / "log\x1b[1m.txt").write_text("odd\n")
    said = cluster.sweep("logs", run, grid="", scale="").out
    assert "own\N{REPLACEMENT CHARACTER}[2J" in said
    assert "tabbed é" in said
    assert "theirs\N{REPLACEMENT CHARACTER}]52;c;ZXZpbA==\N{REPLACEMENT CHARACTER}end" in said
    assert {character for character in said if unicodedata.category(character) == "Cc"} <= {"\n", "\t"}
