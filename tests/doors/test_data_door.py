"""`python -m slicedice.data`, and what sweeps make of what it has prepared."""

import json
from pathlib import Path

import numpy as np
import pytest

from slicedice.data import TokenStore
from tests.doors.conftest import Desk


def _prepared(desk: Desk, *arguments: str) -> dict:
    said = desk.data("prepare", "--source", "texts", "--json", *arguments)
    assert said.status == 0, said.err
    return json.loads(said.out)


@pytest.fixture
def tokenizer(desk: Desk) -> str:
    """A tokenizer.json of 300 ids, trained on the desk's text."""
    said = desk.data("train", "--source", "texts", "--vocab_size", "300", "mine.json")
    assert (said.status, said.out) == (0, "mine.json: 300 ids.\n")
    return "mine.json"


def test_prepare_says_what_there_is_and_how_to_train_on_it(desk: Desk):
    said = desk.data("prepare", "--source", "texts")
    assert said.status == 0
    assert "texts · bytes, 256 ids" in said.out
    assert "Train on it with: --config.data.source=texts\n" in said.out
    path = said.out.splitlines()[-2]
    assert len(TokenStore(Path(path)).domains) == 2
    for named in ([path], ["--source", "texts"]):
        said = desk.data("inspect", *named, "--check")
        assert said.out.endswith("no held-out document is trained on.\n")


def test_a_sweep_trains_on_what_was_prepared(desk: Desk, tokenizer: str, texts: Path, monkeypatch):
    manifest = _prepared(desk, "--tokenizer", tokenizer, "--tokens", "400", "--heldout_fraction", "0.3")
    told = desk.data(
        "prepare", "--source", "texts", "--tokenizer", tokenizer, "--tokens", "400", "--heldout_fraction", "0.3"
    )
    settings = told.out.splitlines()[-1].removeprefix("Train on it with: ").split()
    assert "--config.model.vocab_size=384" in settings
    assert "--config.data.tokens=400" in settings
    said = desk.sweep(*settings)
    assert said.status == 0, said.err
    results = [run.result() or {} for run in desk.runs]
    assert {result["provenance"]["data_fingerprint"] for result in results} == {manifest["fingerprint"]}
    # Without the text that it came from, and from elsewhere by another name, it is the same.
    specs = {run.path.name for run in desk.runs}
    again = desk.sweep(*(s.replace("source=texts", f"source={texts}") for s in settings))
    assert again.status == 0
    assert {run.path.name for run in desk.runs} == specs


def test_a_vocabulary_below_the_tokenizers_is_refused_with_the_number_that_fits(desk: Desk, tokenizer: str):
    said = desk.sweep(f"--config.data.tokenizer={tokenizer}", "--config.model.vocab_size=299")
    assert said.status == 2
    assert "model.vocab_size = 299" in said.err
    assert "has 300 ids: use 384 or more" in said.err
    assert desk.launched == []


def test_a_corpus_that_was_not_prepared_is_refused_with_the_command(desk: Desk):
    said = desk.sweep("--config.data.source=seqio:c4")
    assert said.status == 2
    assert "Prepare them first with `python -m slicedice.data prepare --source seqio:c4" in said.err


def test_plan_and_bad_tokenizer(desk: Desk):
    said = desk.sweep("plan", "--config.data.tokenizer=none.json")
    assert said.status == 2
    assert "none.json cannot be read" in said.err


def test_bad_text_is_refused_or_passed_over_and_told(desk: Desk, texts: Path):
    with (texts / "a" / "all.jsonl").open("a") as file:
        file.write('\n{"text": 1}\n{"text": 2}\n')
    said = desk.data("prepare", "--source", "texts")
    assert said.status == 2
    assert "all.jsonl:7 has no string field" in said.err
    assert "with --skip_bad" in said.err
    said = desk.data("prepare", "--source", "texts", "--skip_bad")
    assert said.status == 0
    assert "2 passed over, no text: " in said.out
    assert "all.jsonl:7 has no string field" in said.out
    # What was prepared so is what a sweep trains on.
    assert desk.sweep().status == 0


def test_a_tokenizer_learns_past_bad_text_and_says_so(desk: Desk, texts: Path):
    with (texts / "a" / "all.jsonl").open("a") as file:
        file.write('\n{"text": 1}\n')
    train = ("train", "--source", "texts", "--vocab_size", "5000", "mine.json")
    assert "with --skip_bad" in desk.data(*train).err
    said = desk.data(*train, "--skip_bad")
    assert said.status == 0
    assert "The text gives no more; 5,000 were asked for." in said.out
    assert "1 passed over, no text: " in said.out


def test_files_that_are_not_read_are_counted_and_names_are_quoted(desk: Desk):
    for name in ("a.txt", "b.txt", "c.md", "d.md", "e.json"):
        desk.write(f"my [x] texts/{name}", name * 20)
    said = desk.data("prepare", "--source", "my [x] texts")
    assert "Left out by how their names end: 2 .md, 1 .json." in said.out
    assert "Train on it with: '--config.data.source=my [x] texts'" in said.out


def test_a_sweep_says_how_finished_runs_gain_evaluations(desk: Desk):
    assert "were not evaluated" not in desk.sweep().out
    desk.write("other/a.txt", "some text")
    said = desk.sweep("--config.execution.evaluation_sets=other")
    assert said.status == 0
    assert "3 finished runs were not evaluated on all of other. `python -m slicedice.evaluate --run" in said.out
    assert len(desk.launched) == 1


def test_inspect_shows_text_and_finds_damage(desk: Desk):
    path = Path(_prepared(desk)["path"])
    said = desk.data("inspect", str(path), "--samples", "2")
    held = (path / "heldout-0.bin").read_bytes().split(b"\xff")[0].decode()
    assert f"a, held out:\n{held}\n" in said.out
    train = bytearray((path / "train.bin").read_bytes())
    train[0] ^= 1
    (path / "train.bin").write_bytes(train)
    said = desk.data("inspect", str(path), "--check", "--json")
    assert said.status == 1
    assert "are not those its fingerprint" in json.loads(said.out)["faults"][0]
    said = desk.data("inspect", "runs")
    assert said.status == 2
    assert "runs is no token store: it has no meta.json" in said.err
    said = desk.data("inspect", "--source", "texts", "--tokens", "9")
    assert "Prepare them first" in said.err


@pytest.mark.parametrize("arguments", [("prepare",), ("inspect",), ("train", "--vocab_size", "400", "a.json")])
def test_a_text_has_to_be_named(desk: Desk, arguments: tuple[str, ...]):
    said = desk.data(*arguments)
    assert said.status == 2
    assert "name a text" in said.err


def test_progress_is_told_where_there_is_no_terminal(desk: Desk, monkeypatch):
    from slicedice.data import progress

    monkeypatch.setattr(progress, "PLAIN_SECONDS", -1.0)
    said = desk.data("prepare", "--source", "texts")
    assert "100%, " in said.out
    assert "tokens, " in said.out


@pytest.mark.parametrize(
    ("text", "number"), [("500", 500), ("2K", 2000), ("1.5B", 1_500_000_000), ("3m", 3_000_000), ("1T", 10**12)]
)
def test_numbers_of_tokens(text: str, number: int):
    from slicedice.data.__main__ import count

    assert count(text) == number


def test_numbers_that_are_none(desk: Desk):
    for text in ("x", "1Q", "", "B", "1e999"):
        with pytest.raises(SystemExit):
            desk.data("prepare", "--source", "texts", "--tokens", text)


def test_more_text_than_a_batch_is_read_by_several_processes(desk: Desk, rng: np.random.Generator, monkeypatch):
    from slicedice.data import encoding

    lines = (json.dumps({"text": "".join(rng.choice(list("abc "), 500)) + "x"}) for _ in range(300))
    desk.write("large/web/all.jsonl", "\n".join(lines))
    one = json.loads(desk.data("prepare", "--source", "large", "--json", "--processes", "1").out)
    monkeypatch.setattr(encoding, "ALONE_BYTES", 1)
    monkeypatch.setattr(encoding, "BATCH_BYTES", 9000)
    two = json.loads(desk.data("prepare", "--source", "large", "--json", "--processes", "2", "--store", "other").out)
    assert two["fingerprint"] == one["fingerprint"]
