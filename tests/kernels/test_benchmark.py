"""The benchmark of the grouped matmul: competitors compute the same, tables come in parts, docs say what tables say."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import grouped_matmul, grouped_matmul_chart
from slicedice.kernels import choose

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize("direction", grouped_matmul.DIRECTIONS)
def test_competitors_compute_the_same(direction: str, rng: np.random.Generator):
    """With one matrix for all groups a dense product is a grouped one, and its weight gradient the sum of theirs."""
    d, f, g, m = 12, 6, 3, 15

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    gate, up, down = normal(d, f), normal(d, f), normal(f, d)
    rows, matrices = {
        "forward": ((normal(m, d),), (gate,)),
        "dlhs": ((normal(m, f),), (gate,)),
        "drhs": ((normal(m, d), normal(m, f)), ()),
    }.get(direction, ((normal(m, d),), (gate, up, down)))
    grouped = (*rows, *(jnp.stack([x] * g) for x in matrices), jnp.asarray([4, 0, 11]))

    def summed(x: jax.Array) -> jax.Array:
        return x.sum(0) if x.ndim == 3 else x

    want = jax.tree.map(summed, grouped_matmul.dense(direction)(*rows, *matrices))
    for function in (
        grouped_matmul.ours(direction, choose(), g),
        grouped_matmul.library(jax.lax.ragged_dot, direction, g),
        lambda *x: grouped_matmul.chained(grouped_matmul.ours(direction, choose(), g))(3, *x),
    ):
        got = jax.tree.map(summed, function(*grouped))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_rows_of_a_shape():
    """Each layout of groups has its row, with all that could be measured here, and no competitor failed."""
    rates = grouped_matmul.Rates(1e6, 1e6)
    rows = grouped_matmul.measure(grouped_matmul.Shape(12, 6, 4, 3), "ffn_grad", jnp.float32, rates, choose())
    assert [row["groups"] for row in rows] == list(grouped_matmul.SKEWS)
    for row in rows:
        assert "errors" not in row
        assert row["over_dense"] > 0
        assert row["roofline_share"] > 0
    assert rows[0]["ragged_dot_over_ours"] > 0


def test_a_table_is_made_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What other calls measured stays, with what was said of these calls; the same call again takes its own's place."""
    monkeypatch.setattr(grouped_matmul, "RESULTS", tmp_path)

    def save(command: str, day: str, *shapes: str, implementation: str = "native") -> None:
        rows = [{"shape": shape, "groups": "equal", "direction": "ffn", "day": day} for shape in shapes]
        about: dict[str, Any] = {"command": command, "device": "A (good) chip", "implementation": implementation}
        grouped_matmul.save(about | {"date": day}, rows)

    save("one", "Monday", "a", "b")
    save("two", "Monday", "c")
    save("three", "Monday", "c", implementation="blocks")
    save("one", "Tuesday", "b")
    (path,) = tmp_path.iterdir()
    assert path.name == "grouped_matmul-A-good-chip.json"
    table = json.loads(path.read_text())
    found = {(row["shape"], row["day"], table["measured"][row["measured"]]["date"]) for row in table["rows"]}
    assert found == {("b", "Tuesday", "Tuesday"), ("c", "Monday", "Monday")}
    assert [call["command"] for call in table["measured"]] == ["two", "three", "one"]
    assert sorted(table["measured"][row["measured"]]["command"] for row in table["rows"]) == ["one", "three", "two"]


def test_docs_give_the_table_of_results():
    """Every row and count of misses that the chart's script sums up; bold marks what missed its target."""
    docs = " ".join((TOP / "docs" / "kernels.md").read_text().replace("**", "").split())
    (results,) = (TOP / "benchmarks" / "results").glob("grouped_matmul-Intel*.json")
    summary = grouped_matmul_chart.summary(json.loads(results.read_text()))
    rows = re.findall(r"^\| \d.*\d \|$", summary, re.MULTILINE)
    assert len(rows) == 6
    counts = re.findall(r": (\d+ of \d+)$", summary, re.MULTILINE)
    assert len(counts) == 3
    for said in (*rows, *counts):
        assert said in docs
