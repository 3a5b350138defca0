"""What docs/results and the README show is what the committed results say."""

import importlib.util
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from slicedice.grid import load_grid
from slicedice.report.claims import judge

TOP = Path(__file__).parents[2]
RESULTS = TOP / "docs" / "results"


@pytest.fixture(scope="module")
def claims() -> list[dict]:
    return json.loads((RESULTS / "claims.json").read_text())


@pytest.fixture(scope="module")
def regenerate():
    spec = importlib.util.spec_from_file_location("regenerate", RESULTS / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_the_committed_claims(claims, regenerate):
    text = (TOP / "README.md").read_text()
    assert regenerate.in_readme(text, claims) == text
    assert (RESULTS / f"{regenerate.SHOWN}.png").exists()


def test_the_page_shows_the_committed_claims_and_figures(claims, regenerate):
    page = (RESULTS / "README.md").read_text()
    assert "\n".join(regenerate.claims_table(claims, short=False)) in page
    figures = {path.stem for path in RESULTS.glob("*.png")}
    assert figures == {figure.name for figure in load_grid("paper", "nano").figures}
    assert {name for name in figures if f"![{name}]({name}.png)" in page} == figures


def test_the_committed_runs_still_lead_to_the_committed_claims(claims):
    rows = pyarrow.parquet.read_table(RESULTS / "results.parquet").to_pylist()
    assert len(rows) == 168
    again = [judgement.as_dict() for judgement in judge(rows)]
    assert [(c["claim"], c["verdict"], c["runs"]) for c in again] == [
        (c["claim"], c["verdict"], c["runs"]) for c in claims
    ]
    for now, then in zip(again, claims, strict=True):
        assert now["effect"] == pytest.approx(then["effect"], abs=1e-6)
