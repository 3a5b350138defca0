"""The page: whole in itself, valid, complete, and safe against what names hold."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy.stats import t

from slicedice.grid import Figure, Panel
from slicedice.report.page import write_page
from slicedice.report.report import write_report
from slicedice.report.results import Results
from slicedice.store import Kind
from tests import endings

VOID = {"meta", "link", "br", "hr", "img", "input", "base", "col", "embed", "source", "wbr"}
POINTS = [{}, *({"model.experts": f"n={n} g={g}"} for n in (4, 8) for g in ("1/2", "1/4"))]
FIGURES = tuple(Figure(name, name, (Panel("P", "g", "n"), Panel("Q", "n", "g"))) for name in ("first", "second"))


class Page(HTMLParser):
    """Reads a page and complains of tags that are not closed in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.rows: list[list[str]] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def attributes(self, *names: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for name, value in attributes.items() if name in names]

    def row(self, text: str) -> list[str]:
        (row,) = [row for row in self.rows if text in row]
        return row


@pytest.fixture
def report(store, plan_of, finish):
    """The report of a grid with a run of every kind, and with other text left out."""
    plan = plan_of(*POINTS, {"seed": 1}, {"seed": 2}, figures=FIGURES, asked={"only": "<b>*</b>"})
    finish(plan, 0, {"code": 1.0, "prose": 3.0, "macro": 2.0})
    finish(plan, 1, {"code": 0.5, "prose": 2.0, "macro": 1.25})
    finish(plan, 2, kind=Kind.DIVERGED, steps=3)
    for i, kind in {3: Kind.CRASHED, 4: Kind.OUT_OF_MEMORY}.items():
        id_ = list(plan.runs)[i]
        store.run(id_).create(*plan.runs[id_])
        endings.fail(store.run(id_), kind, "ValueError: <b>a & b</b>")
    finish(plan, 5, {"code": 1.5, "prose": 3.5, "macro": 2.5})
    finish(plan, 6, {"code": 1.5, "macro": 1.5}, fingerprint="other text")
    about = "What is <b>bold</b> & what\nis not?\n\nA second paragraph."
    results, _, page = write_report(plan, store, grid="<b>Mine<b> & yours", scale="s", about=about)
    return plan, results, page


def test_the_report_is_whole(report, store):
    _, results, page = report
    assert page.parent.parent == store.root / "reports"
    assert {path.name for path in page.parent.iterdir()} == {
        "claims.json",
        "index.html",
        "results.parquet",
        "results.csv",
        *(f"{figure.name}.{kind}" for figure in FIGURES for kind in ("png", "svg")),
    }
    assert len(results.rows) == len(POINTS) + 1


def test_the_page_asks_no_one_for_anything(report):
    page = Page(report[2])
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "img"}
    assert page.attributes("src", "srcset", "data", "action", "poster") == []
    links = page.attributes("href", "xlink:href")
    assert links
    assert all(link.startswith("#") for link in links)
    assert "@import" not in page.html
    assert all(url.strip("'\"").startswith("#") for url in re.findall(r"url\(([^)]*)\)", page.html))


def test_ids_are_unique_and_links_lead_somewhere(report):
    page = Page(report[2])
    ids = page.attributes("id")
    links = {link.removeprefix("#") for link in page.attributes("href", "xlink:href")}
    links |= set(re.findall(r"url\(#([^)]*)\)", page.html))
    assert links <= set(ids)
    assert len(ids) == len(set(ids))


def test_every_run_and_every_figure_is_there(report):
    plan, results, path = report
    page = Page(path)
    for row in results.rows:
        cells = page.row(row["id"])
        assert cells[0] == row["name"]
        assert cells[2] == row["state"]
        assert cells[-1] == (row["reason"] or "")
    assert [tag for tag, _ in page.tags].count("svg") == len(FIGURES)
    assert "doctype" not in page.html[20:].lower()
    assert all(figure.title in page.words for figure in FIGURES)
    assert "3 done" in page.words
    assert "1 diverged" in page.words
    left_out = list(plan.runs)[6]
    assert left_out not in page.words
    assert results.notes[0] in page.words


def test_cells_have_their_loss_domains_and_noise(report):
    page = Page(report[2])
    (header,) = [row for row in page.rows if "against dense" in row]
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in page.rows if len(row) == len(header)}
    dense, moe = cells["dense"], cells["MoE"]
    # Two seeds of the dense model, 2 and 2.5: one degree of freedom.
    assert (dense["seeds"], dense["loss (nats)"]) == ("2", "2.2500")
    assert dense["± 95 %"] == f"{t.ppf(0.975, 1) * 0.125**0.5 / 2**0.5:.4f}"
    assert (dense["code"], dense["prose"]) == ("1.2500", "3.2500")
    assert (moe["seeds"], moe["loss (nats)"], moe["code"], moe["prose"]) == ("1", "1.2500", "0.5000", "2.0000")
    assert "without capacity" not in page.words
    # They share one seed, of which dense has 2.
    assert moe["against dense"] == f"-0.7500 ± {t.ppf(0.975, 1) * (2 * 0.125) ** 0.5:.4f} within noise"


def test_the_set_up_is_told(report):
    page = Page(report[2])
    facts = {row[0]: row[1] for row in page.rows if len(row) == 2}
    (spec, _), *_ = report[0].runs.values()
    assert facts["text"].startswith(spec.data.source)
    assert facts["text's fingerprint"] == "f" * 12
    assert f"{spec.tokens:,} tokens in {spec.budget.steps} steps" in facts["training"]
    assert (facts["seeds"], facts["asked for"]) == ("0, 1, 2", "only = <b>*</b>")


def test_losses_with_and_without_the_capacity_are_both_shown(store, plan_of, finish, content):
    plan = plan_of({}, {"model.experts": "n=8 g=1/4", "router.kind": "default"})
    finish(plan, 0, {"a": 3.0, "macro": 3.0})
    scores = {name: {"nats": 2.0, "bits_per_byte": 1.0, "targets": 5} for name in ("a", "macro")}
    free = {name: {**score, "nats": 1.5} for name, score in scores.items()}
    finish(plan, 1, evaluation={"held_out": scores, "without_capacity": free})
    *_, path = write_report(plan, store, grid="mine", scale="s", about="")
    page = Page(path)
    (header,) = [row for row in page.rows if "against dense" in row]
    dense, moe = (dict(zip(header, row, strict=True)) for row in page.rows if row[0] in ("dense", "MoE"))
    assert (moe["loss (nats)"], moe["without capacity"]) == ("2.0000", "1.5000")
    assert (dense["loss (nats)"], dense["without capacity"]) == ("3.0000", "")


def test_a_selection_has_a_folder_of_its_own(store, plan_of):
    pages = [
        write_report(plan_of({}, asked=asked), store, grid="mine", scale="s", about="")[-1]
        for asked in (
            {},
            {"seeds": 3},
            {"only": "*-n32-*"},
            {"only": "*_n32_*"},
            {"data.source": "../my texts/", "optimizer.learning_rate": 1e-3},
            {"only": "x" * 500},
        )
    ]
    names = [page.parent.name for page in pages]
    assert len(set(names)) == len(names)
    assert names[0] == "mine-s"
    assert "seeds=3" in names[1]
    assert "learning_rate=0.001" in names[4]
    assert all(page.parent.parent == store.root / "reports" for page in pages)
    assert max(map(len, names)) < 150


def test_text_is_text_and_not_markup(report):
    page = Page(report[2])
    assert "<b>Mine<b> & yours" in page.words
    assert "What is <b>bold</b> & what is not?" in page.words
    assert "ValueError: <b>a & b</b>" in page.words
    assert "b" not in {tag for tag, _ in page.tags}


def test_the_page_of_a_sweep_that_has_not_begun(store, plan_of):
    plan = plan_of(*POINTS, figures=FIGURES)
    *_, path = write_report(plan, store, grid="mine", scale="s", about="")
    page = Page(path)
    assert all(id_ in page.words for id_ in plan.runs)
    assert f"{len(POINTS)} missing" in page.words


def test_figures_that_hold_odd_names_stay_valid(tmp_path: Path, row_of, plan_of):
    svg = tmp_path / "f.svg"
    svg.write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg><text>Größe · &lt;b&gt;</text></svg>\n', encoding="utf-8"
    )
    path = tmp_path / "index.html"
    write_page(
        path,
        title="t",
        about="",
        plan=plan_of({}),
        results=Results([row_of({}, loss=1.0)], []),
        figures=[svg],
        evaluation_sets={},
        claims=[],
    )
    page = Page(path)
    assert "Größe · <b>" in page.words
    assert "<?xml" not in page.html


def test_runs_that_ran_without_git_and_timing_are_shown(tmp_path: Path, store, plan_of, finish, content):
    plan = plan_of({})
    origin = {**content()["provenance"], "git_revision": None}
    id_ = finish(plan, 0, {"a": 1.0, "macro": 1.0}, provenance=origin, seconds_per_step=None)
    *_, path = write_report(plan, store, grid="mine", scale="s", about="")
    assert Page(path).row(id_)[4] == "1.0000"


def test_settings_are_shown_where_they_vary(store, plan_of):
    plan = plan_of({}, {"optimizer.learning_rate": 0.5})
    *_, path = write_report(plan, store, grid="mine", scale="s", about="")
    rows = [Page(path).row(id_) for id_ in plan.runs]
    assert "settings" in Page(path).words
    assert rows[1][1] == "learning_rate=0.5"


def test_a_new_report_takes_the_place_of_the_old(report, store, finish, plan_of):
    plan, _, page = report
    shutil.rmtree(store.run(list(plan.runs)[6]).path)
    results, _, again = write_report(plan, store, grid="<b>Mine<b> & yours", scale="s", about="")
    assert again == page
    assert len(results.rows) == len(POINTS) + 2
    assert Page(page).words.count("is not?") == 0
    assert json.dumps(results.rows)
