"""A worker that trains for real, is stopped, goes on, and has writers that fail."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slicedice import data
from slicedice.spec import run_id
from slicedice.store import Kind, Store, metrics
from slicedice.worker import Worker
from slicedice.writers import run as writers_run

pytest.importorskip("clu")
pytest.importorskip("tensorboardX")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

FIELDS = {
    "model.experts": "n=4 k=2 g=1/2",
    "execution.writers": "lost,tensorboard,absent",
    "execution.evaluate_every": 2,
    "evaluation.tokens": 64,
}


def test_what_is_shown_of_a_run_is_what_is_kept_of_it(
    tmp_path: Path, tiny, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    from tests.writers.recorded import install

    monkeypatch.setattr(writers_run, "EVERY_SECONDS", 0.0)
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(50):
        (texts / f"{number}.txt").write_text("".join(rng.choice(list("abcdefgh "), 60)))
    spec, execution = tiny({**FIELDS, "data.source": str(texts)})
    store, id_ = Store(tmp_path / "store").create(), run_id(spec)
    folder = store.run(id_)
    folder.create(spec, execution)
    data.prepare(spec.data.source, spec.data.tokenizer, store.data, spec.data.heldout_fraction)

    class Stopping(Worker):
        def should_stop(self) -> bool:
            return folder.attempt().steps == 4

    assert Stopping(store).train(id_) is Kind.PREEMPTED
    assert Worker(store).train(id_) is Kind.DONE
    (shown,) = (store.root / "tensorboard").iterdir()
    assert len(list(shown.iterdir())) == 2
    everything: Any = {event_accumulator.SCALARS: 0}
    read = event_accumulator.EventAccumulator(str(shown), size_guidance=everything).Reload()
    curves = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    lines = list(metrics.read(folder.attempt().metrics))
    assert len(lines) == 6
    assert {"load_imbalance", "dead_experts", "dropped_share"} < lines[0].keys()
    for name in lines[0].keys() - {"step"}:
        assert curves[f"train/{name}"] == [(line["step"], line[name]) for line in lines]
    scored = [
        (line["step"], line["scores"]["held_out"]["macro"]) for line in metrics.read(folder.attempt().evaluation_lines)
    ]
    assert [step for step, _ in scored] == [2, 4, 6]
    for name in ("nats", "bits_per_byte", "targets"):
        want = [(step, pytest.approx(scores[name], rel=1e-6)) for step, scores in scored]
        assert curves[f"evaluation/held_out/macro/{name}"] == want
    assert folder.log_of(0).read_text().count("is written to no longer") == 4  # two writers, each time
