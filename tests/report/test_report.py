"""The report as a whole: which figures it draws, into which files, and what it says of those that it does not."""

from pathlib import Path
from typing import Any

import pytest

from slicedice.grid import Figure, Panel
from slicedice.report import report as module
from slicedice.report.report import EVALUATION_SETS, write_report
from slicedice.store import Kind
from tests.report.test_page import Page

POINTS = [{}, *({"model.experts": f"n={n} g={g}"} for n in (4, 8) for g in ("1/2", "1/4"))]
PANELS = (Panel("P", "g", "n"),)
LOSS = Figure("figure_1", "Loss", PANELS)


def write(plan, store, **more: Any):
    return write_report(plan, store, grid="mine", scale="s", about="", **more)


def drawn(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".png", ".svg")}


def files(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("png", "svg")}


@pytest.fixture
def ended(plan_of, finish, rng):
    """A plan with figures whose runs are done, with losses of two evaluation sets."""

    def make(*figures: Figure, sets: tuple[str, ...] = ("code", "prose")):
        plan = plan_of(*POINTS, figures=figures)
        for i in range(len(POINTS)):
            scores = {name: float(rng.normal(3, 0.1)) for name in sets}
            finish(plan, i, {**scores, "macro": sum(scores.values()) / len(scores)})
        return plan

    return make


def test_a_figure_without_a_value_is_not_drawn_and_named(store, ended):
    figures = [Figure(name, name, PANELS, y=f"accuracy_{task}") for name, task in (("a", "x"), ("b", "y"), ("c", "y"))]
    results, _, page = write(ended(LOSS, *figures), store)
    assert drawn(page.parent) == files("figure_1")
    notes = ["a is not drawn: no run has accuracy_x yet", "b, c are not drawn: no run has accuracy_y yet"]
    assert results.notes == notes
    shown = Page(page)
    assert all(note in shown.words for note in notes)
    assert [tag for tag, _ in shown.tags].count("svg") == 1


def test_a_figure_is_drawn_as_soon_as_one_of_its_own_runs_has_a_value(store, plan_of, finish):
    plan = plan_of(*POINTS, figures=[LOSS, Figure("other", "Other", PANELS)])
    ids = list(plan.runs)
    plan.reads["figure_1"], plan.reads["other"] = set(ids[:3]), set(ids[3:])
    results, _, page = write(plan, store)
    assert results.notes == ["figure_1, other are not drawn: no run has loss yet"]
    finish(plan, 4, {"a": 9.0, "macro": 9.0}, kind=Kind.DIVERGED, steps=3)
    finish(plan, 0, {"a": 2.0, "macro": 2.0})
    results, _, page = write(plan, store)
    assert drawn(page.parent) == files("figure_1")
    assert results.notes == ["other is not drawn: no run has loss yet"]


def test_notes_are_not_put_into_what_was_read(store, ended, monkeypatch: pytest.MonkeyPatch):
    plan = ended(LOSS, Figure("a", "a", PANELS, y="accuracy_x"))
    read = module.read_results(plan, store)
    read.notes.append("what reading found")
    monkeypatch.setattr(module, "read_results", lambda *_: read)
    results, *_ = write(plan, store)
    assert results.notes == ["what reading found", "a is not drawn: no run has accuracy_x yet"]
    assert read.notes == ["what reading found"]


def test_what_an_earlier_report_drew_and_this_one_does_not_is_removed(store, ended):
    plan = ended(LOSS, Figure("figure_2", "Two", PANELS))
    *_, page = write(plan, store, evaluation_sets=True)
    folder = page.parent
    (folder / "mine.png").write_bytes(b"a user's own")
    sets = {
        f"{EVALUATION_SETS}/{name}" for name in files(*(f"figure_{i}_{d}" for i in "12" for d in ("code", "prose")))
    }
    assert drawn(folder) == files("figure_1", "figure_2", "mine") - {"mine.svg"} | sets
    # Their runs are done for other reasons no more: the second figure reads none of them.
    plan.reads["figure_2"] = set()
    write(plan, store, evaluation_sets=True)
    sets = {name for name in sets if "figure_1" in name}
    assert drawn(folder) == files("figure_1") | sets | {"mine.png"}
    write(plan, store)
    assert drawn(folder) == files("figure_1") | {"mine.png"}
    assert not (folder / EVALUATION_SETS).exists()


def test_evaluation_sets_are_drawn_on_demand_from_the_same_declarations(store, ended):
    plan = ended(LOSS, Figure("train", "Train", PANELS, y="train_loss"))
    *_, page = write(plan, store)
    told = Page(page)
    assert drawn(page.parent) == files("figure_1", "train")
    assert "details" not in {tag for tag, _ in told.tags}
    assert "--evaluation_sets" in told.words
    assert "(code, prose)" in told.words
    *_, page = write(plan, store, evaluation_sets=True)
    sets = {f"{EVALUATION_SETS}/{name}" for name in files("figure_1_code", "figure_1_prose")}
    assert drawn(page.parent) == files("figure_1", "train") | sets
    shown = Page(page)
    assert "--evaluation_sets" not in shown.words
    assert [tag for tag, _ in shown.tags].count("details") == 2
    assert all("open" not in attributes for tag, attributes in shown.tags if tag == "details"), "they are collapsed"
    # Each set's own figure is in its own section.
    for name, other in (("code", "prose"), ("prose", "code")):
        (section,) = (part for part in shown.html.split("<details>")[1:] if f"for {name}</summary>" in part)
        section = section.partition("</details>")[0]
        assert f"{name}: cross-entropy (nats)" in section
        assert f"{other}: cross-entropy (nats)" not in section
        assert section.count("<svg") == 1
        svg = (page.parent / EVALUATION_SETS / f"figure_1_{name}.svg").read_text(encoding="utf-8")
        losses = [row[f"loss_{name}"] for row in module.read_results(plan, store).rows if not row["dense"]]
        assert all(f"{name}: cross-entropy (nats): {loss:.4f}" in svg for loss in losses)


def test_ids_are_unique_over_all_figures_of_the_page(store, ended):
    # A figure whose name is that of another's version for an evaluation set.
    plan = ended(LOSS, Figure("figure_1_code", "Mine", PANELS))
    *_, page = write(plan, store, evaluation_sets=True)
    shown = Page(page)
    ids = shown.attributes("id")
    assert [tag for tag, _ in shown.tags].count("svg") == 2 * 3
    assert len(set(ids)) == len(ids) > 0
    links = {link.removeprefix("#") for link in shown.attributes("href", "xlink:href")}
    assert links <= set(ids)


NAMES = ("a b/../c", "a b", "a_b", "ä", "ö", "x" * 300, "Code & <b>", ".", "CON: ?")


def test_evaluation_sets_of_any_name_have_files_of_their_own(store, ended):
    *_, page = write(ended(LOSS, sets=NAMES), store, evaluation_sets=True)
    svgs = sorted((page.parent / EVALUATION_SETS).glob("*.svg"))
    assert len(svgs) == len(NAMES)
    assert drawn(page.parent) == files("figure_1") | {
        f"{EVALUATION_SETS}/{path.stem}.{kind}" for path in svgs for kind in ("png", "svg")
    }
    for path in svgs:
        assert path.name.startswith("figure_1_")
        assert path.name.isascii()
        assert len(path.name) < 120
        assert not set(path.name) & set('<>:"/\\|?* ')
    shown = Page(page)
    assert [tag for tag, _ in shown.tags].count("details") == len(NAMES)
    assert all(f"The same figures for {name}" in shown.words for name in NAMES)
    assert "b" not in {tag for tag, _ in shown.tags}
