"""Whole documents against their losses one window at a time; sets as they lie on disk; bad files, named."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slicedice.data import DataError
from slicedice.evaluation import Settings, find
from slicedice.evaluation.documents import DocumentEvaluation
from slicedice.evaluation.rows import Row, summed
from slicedice.evaluation.scoring import scorers
from slicedice.evaluation.sets import PLACES, find_collection
from slicedice.moe import Routing
from slicedice.spec.config import EVALUATION_SETS
from tests.evaluation.conftest import WINDOW, Bench
from tests.evaluation.models import sure_model

END = 255


def write(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def some_texts(rng: np.random.Generator, count: int, longest: int = 60) -> list[str]:
    return ["".join(rng.choice(list("abcdeä \n"), rng.integers(1, longest))) + "." for _ in range(count)]


def evaluate(bench: Bench, path: Path | str, stride: int = WINDOW, *, batch_size: int = 2, data_dir: str = "", **more):
    evaluation = find("documents", str(path), data_dir)
    assert isinstance(evaluation, DocumentEvaluation)
    ways = more.get("scores", bench.scores)
    return evaluation.evaluate(ways, bench.tokenizer, Settings(WINDOW, stride), batch_size=batch_size)


def reference(bench: Bench, text: str, stride: int) -> np.ndarray:
    """The loss of each token of a document, each in the window that a naive loop finds for it."""
    tokens, losses = [END, *text.encode(), END], []
    for target in range(1, len(tokens)):
        # The first of the windows, `stride` apart, that has it as a target.
        start = 0 if target <= WINDOW else -(-(target - WINDOW) // stride) * stride
        losses.append(bench.naive.losses(np.array(tokens[start : target + 1]))[-1])
    return np.array(losses)


@pytest.mark.parametrize("stride", [WINDOW, 5, 1])
def test_scores_are_those_of_each_token_alone(bench: Bench, tmp_path: Path, rng: np.random.Generator, stride: int):
    texts = {"x": some_texts(rng, 7), "y": some_texts(rng, 2)}
    for domain, own in texts.items():
        write(tmp_path / "set" / domain / "all.jsonl", *own)
    found = evaluate(bench, tmp_path / "set", stride)
    assert found["settings"] == {"window": WINDOW, "stride": stride}
    (scores,) = found["scores"].values()
    assert list(scores) == ["x", "y", "macro"]
    means = []
    for domain, own in texts.items():
        losses = np.concatenate([reference(bench, text, stride) for text in own])
        size = sum(len(text.encode()) for text in own)
        means.append(losses.mean())
        assert scores[domain] == pytest.approx(
            {
                "nats": losses.mean(),
                "bits_per_byte": losses.sum() / math.log(2) / size,
                "targets": size + len(own),
                "documents": len(own),
            },
            rel=2e-5,
        )
    assert scores["macro"]["nats"] == pytest.approx(np.mean(means), rel=2e-5)
    assert scores["macro"]["documents"] == 9
    assert found["problems"]["counts"] == {}
    assert found["missing"] == []


def test_documents_see_nothing_of_each_other(bench: Bench, tmp_path: Path, rng: np.random.Generator):
    one, other = some_texts(rng, 2)
    write(tmp_path / "both.jsonl", one, other)
    write(tmp_path / "turned.jsonl", other, one)
    both, turned = (evaluate(bench, tmp_path / f"{name}.jsonl") for name in ("both", "turned"))
    nats = [found["scores"]["as_trained"]["macro"]["nats"] for found in (both, turned)]
    assert nats[0] == pytest.approx(nats[1], rel=1e-6)


def test_padding_takes_no_experts_room_and_both_ways_are_told(bench: Bench, tmp_path: Path, tiny, rng):
    fields = {"model.experts": "n=4 g=1/2", "model.layers": 1, "router.group": 1, "router.kind": "default"}
    spec, _ = tiny({**fields, "router.capacity_factor": 0.5})
    model = sure_model(spec, np.random.default_rng(0))
    ways = scorers(model, spec, Routing(0.5, spec.data.sequence_length), WINDOW)
    assert list(ways) == ["as_trained", "without_capacity"]
    # Whole windows: a group of one row is that row, however many rows of padding are beside it.
    write(tmp_path / "whole.jsonl", *("".join(rng.choice(list("abcd"), WINDOW - 1)) for _ in range(5)))
    two, three = (evaluate(bench, tmp_path / "whole.jsonl", batch_size=size, scores=ways)["scores"] for size in (2, 3))
    for way in ways:
        assert two[way]["macro"] == pytest.approx(three[way]["macro"], rel=1e-6)
    assert abs(two["as_trained"]["macro"]["nats"] - two["without_capacity"]["macro"]["nats"]) > 1e-3
    # A group has as many positions in every batch, so rows of a half of the window share one in twos.
    counts = {way: own["whole"]["targets"] for way, own in two.items()}
    assert counts == {"as_trained": 5 * WINDOW, "without_capacity": 5 * WINDOW}


def test_what_padding_is_makes_no_difference(tiny, rng: np.random.Generator):
    """A short row stands before another one in its routing group: would padding be routed, it would take room first."""
    fields = {"model.experts": "n=4 g=1/2", "model.layers": 1, "router.group": 2, "router.kind": "default"}
    spec, _ = tiny({**fields, "router.capacity_factor": 0.5})
    ways = scorers(sure_model(spec, np.random.default_rng(0)), spec, Routing(0.5, 2 * WINDOW), WINDOW)
    rows = [Row(rng.integers(0, 200, size).astype(np.int32), 1, i) for i, size in enumerate([10, WINDOW + 1] * 4)]
    found = [summed(rows, ways, batch_size=2, window=WINDOW, padding=padding) for padding in range(0, 250, 50)]
    for other in found[1:]:
        for way in ways:
            assert other[way] == pytest.approx(found[0][way], rel=1e-6)


def test_a_routing_group_grows_with_the_window(bench: Bench, tiny):
    spec, _ = tiny({"router.group": 2})
    ways: Any = scorers(bench.model, spec, Routing(1.2, 2 * spec.data.sequence_length), 64)
    assert ways["as_trained"]._routing == Routing(1.2, 2 * 64)
    assert ways["without_capacity"]._routing == Routing()


BAD = (
    b'{"text": "good"}\n{"text": 3}\n{broken\n{"text": "\xff"}\n\n{"txt": "x"}\n{"text": "  "}\n{"text": "also good"}\n'
)


def test_what_cannot_be_used_is_counted_and_named(bench: Bench, tmp_path: Path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(BAD)
    found = evaluate(bench, path)
    assert found["scores"]["as_trained"]["bad"]["documents"] == 2
    assert found["problems"]["counts"] == {"no text": 2, "not JSON": 1, "not UTF-8": 1, "blank": 1}
    named = [message for own in found["problems"]["named"].values() for message in own]
    for line in (2, 3, 4, 6, 7):
        assert any(f"bad.jsonl:{line} " in message for message in named), (line, named)


def test_a_set_of_nothing_is_refused_by_name(bench: Bench, tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("\n{broken\n")
    with pytest.raises(DataError, match=r"empty has no document.*empty\.jsonl:2 is not JSON"):
        evaluate(bench, tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="nowhere"):
        find("documents", str(tmp_path / "nowhere"), "")


def test_a_domain_of_nothing_is_named_as_missing(bench: Bench, tmp_path: Path):
    write(tmp_path / "set" / "a" / "x.jsonl", "text")
    (tmp_path / "set" / "b").mkdir()
    (tmp_path / "set" / "b" / "x.jsonl").write_text("{broken\n")
    found = evaluate(bench, tmp_path / "set")
    assert found["missing"] == ["b"]
    assert list(found["scores"]["as_trained"]) == ["a", "macro"]


def test_a_file_that_ends_too_early_counts_up_to_there(bench: Bench, tmp_path: Path):
    write(tmp_path / "cut.jsonl.gz", *("text " * 50 + str(i) for i in range(2000)))
    content = (tmp_path / "cut.jsonl.gz").read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(content[: len(content) // 2])
    found = evaluate(bench, tmp_path / "cut.jsonl.gz")
    assert 0 < found["scores"]["as_trained"]["cut"]["documents"] < 2000
    assert "damaged file" in found["problems"]["counts"]


def test_a_fingerprint_is_of_what_was_scored(bench: Bench, tmp_path: Path):
    write(tmp_path / "a" / "set.jsonl", "one", "two")
    write(tmp_path / "b" / "set.jsonl", "one", "two")
    write(tmp_path / "c" / "set.jsonl", "one", "three")
    write(tmp_path / "d" / "set.jsonl", "onetwo")
    prints = [find("documents", str(tmp_path / name / "set.jsonl"), "").fingerprint() for name in "abcd"]
    assert prints[0] == prints[1] == evaluate(bench, tmp_path / "a" / "set.jsonl")["fingerprint"]
    assert len(set(prints)) == 3


def test_palomas_sets_are_found_as_they_were_downloaded(bench: Bench, tmp_path: Path):
    assert set(PLACES) == set(EVALUATION_SETS)
    for file in ("dolma-v1_5/val/val_books.jsonl.gz", "dolma-v1_5/val/val_stack_uniform.jsonl.gz"):
        write(tmp_path / "paloma" / file, "a", "b")
    write(tmp_path / "paloma" / "c4_en" / "val" / "val_00.jsonl.gz", "c")
    write(tmp_path / "paloma" / "c4_en" / "test" / "test_00.jsonl.gz", "never read")
    write(tmp_path / "paloma" / "m2d2_s2orc_unsplit" / "val" / "val.jsonl.gz", "d")
    write(tmp_path / "pile" / "val" / "one" / "x.jsonl", "e")
    found = evaluate(bench, "paloma", data_dir=str(tmp_path))
    scores = found["scores"]["as_trained"]
    assert {name: s["documents"] for name, s in scores.items()} == {
        "c4_en": 1, "dolma_books": 2, "dolma_stack": 2, "m2d2_s2orc": 1, "pile": 1, "macro": 7,
    }  # fmt: skip
    absent = ["dolma_common-crawl", "dolma_pes2o", "dolma_reddit", "dolma_wiki", "ice", "wikitext_103"]
    assert found["missing"] == absent
    alone = find_collection("dolma_books", str(tmp_path / "paloma"))
    assert (alone.name, alone.missing, [part.domain for part in alone.parts()]) == ("dolma_books", (), ["dolma_books"])


@pytest.mark.parametrize("name", ["paloma", "ice"])
def test_a_named_set_that_is_not_there_says_where_it_would_be(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=rf"{name!r} is not below the data folder {tmp_path}.*val"):
        find_collection(name, str(tmp_path))


@pytest.mark.parametrize("name", ["held_out/x.jsonl", "paloma/x.jsonl", "c4_en.jsonl", "hellaswag/x.jsonl"])
def test_names_with_a_meaning_are_no_names_of_files(tmp_path: Path, name: str):
    write(tmp_path / name, "text")
    with pytest.raises(DataError, match="which is a name with a meaning"):
        find_collection(str(tmp_path / name.partition("/")[0]), "")


def test_a_file_that_cannot_be_read_is_an_error_and_not_a_smaller_set(bench: Bench, tmp_path: Path):
    write(tmp_path / "set" / "a.jsonl", "some text")
    (tmp_path / "set" / "c.jsonl").symlink_to("/proc/self/mem")
    path = str(tmp_path / "set")
    for look in (lambda: evaluate(bench, path), DocumentEvaluation(find_collection(path, "")).fingerprint):
        with pytest.raises(DataError, match=r"c\.jsonl cannot be read"):
            look()
