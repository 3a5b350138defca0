"""Bad input ends in status 2 and one paragraph that names the thing; nothing is launched."""

import errno
import json
import os

import pytest

from slicedice.store import Store
from slicedice.store.store import LAYOUT

GRID = (
    "from slicedice.grid import Grid\nfrom slicedice.spec import moe_layer\n\n\ndef get_grid(scale):\n    return {}\n"
)


def refused(desk, *arguments: str, names: list[str], **options: str) -> None:
    call = desk.sweep(*arguments, **options)
    assert call.status == 2
    assert call.out == ""
    assert len(call.err.strip().splitlines()) == 1
    assert "Traceback" not in call.err
    for name in names:
        assert name in call.err, call.err
    assert desk.launched == []


@pytest.mark.parametrize("verb", ["run", "plan", "status", "report"])
def test_unknown_names_list_those_there_are(desk, verb: str):
    refused(desk, verb, grid="mien", names=["mien", "mine", "granularity_vs_count"])
    refused(desk, verb, scale="10k", names=["10k", "10m", "nano", "smoke"])
    assert not (desk.folder / "runs").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer.learning_rate", "nan"),
        ("budget.batch_size", "0"),
        ("data.source", ""),
        ("scale", "a/b"),
    ],
)
def test_a_bad_field_from_the_command_line_is_blamed_and_not_the_grid(desk, field: str, value: str):
    call = desk.sweep("plan", f"--config.{field}={value}")
    assert call.status == 2
    assert call.err.startswith(f"{field} = ")
    assert "grid" not in call.err


def test_a_figure_over_what_is_no_axis_is_refused_before_anything_is_trained(desk):
    for figure, name in (
        ("Figure('f', 'F', (Panel('P', x='lr', hue='n'),))", "lr"),
        ("Figure('f', 'F', (Panel('P', x='n', hue='colour'),))", "colour"),
        ("Figure('f', 'F', (Panel('P', x='n', hue='g'),), y='los')", "los"),
        ("Figure('f', 'F', ())", "Figure.panels"),
    ):
        source = "from slicedice.grid import Figure, Grid, Panel\n\n\ndef get_grid(scale):\n    return "
        desk.write("sweeps/odd.py", f"{source}Grid([{{}}], ({figure},))")
        refused(desk, grid="odd", names=["odd.py, line 5", name])


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_an_unknown_tokenizer_is_told_before_anything_is_launched(desk, verb: str):
    refused(desk, verb, "--config.data.tokenizer=words", names=["words", "bytes"])


def test_what_trains_nothing_takes_no_dry_run(desk):
    for verb in ("plan", "status", "report"):
        refused(desk, verb, "--dry_run", names=["--dry_run", verb])


def test_unknown_paths_are_named(desk):
    refused(desk, grid="sweeps/mien.py", names=["sweeps/mien.py", "mine"])
    refused(desk, scale="./nano.py", names=["./nano.py", "nano"])
    refused(desk, launcher="slrum", names=["slrum", "local"])


@pytest.mark.parametrize("path", ["broken", "./sweeps/broken.py", "absolute"])
@pytest.mark.parametrize("where", ["import", "call", "syntax", "below"])
def test_a_grid_file_that_raises_is_told_with_its_line(desk, path: str, where: str):
    line = {
        "import": "x = 1 / 0",
        "call": "def get_grid(scale): return 1 / 0",
        "syntax": "def get_grid(scale) return 1",
        "below": "from slicedice.spec import moe_layer; moe_layer(s=2, g=0)",
    }[where]
    file = desk.write("sweeps/broken.py", f'"""Broken."""\n\n\n{line}\n')
    error = {"syntax": "SyntaxError", "below": "SpecError"}.get(where, "ZeroDivisionError")
    refused(desk, grid=str(file) if path == "absolute" else path, names=["sweeps/broken.py, line 4", error])


@pytest.mark.parametrize("content", ["", "get_grid = 3", "def get_grid(scale):\n    return [{}]\n"])
def test_a_file_that_is_no_grid_is_named(desk, content: str):
    desk.write("sweeps/odd.py", content)
    refused(desk, grid="odd", names=["odd.py"])


@pytest.mark.parametrize(
    "content", ["", "def get_config():\n    return 1 / 0\n", "def get_config():\n    return None\n"]
)
def test_a_file_that_is_no_experiment_is_named(desk, content: str):
    desk.write("experiments/odd.py", content)
    refused(desk, scale="odd", names=["odd.py"])


@pytest.mark.parametrize("content", ["", "1 / 0\n"])
def test_a_file_that_is_no_launcher_is_named(desk, content: str):
    desk.write("odd.py", content)
    refused(desk, launcher="odd.py", names=["odd.py"])


@pytest.mark.parametrize(
    ("point", "names"),
    [
        # n that is no whole number of experts, or fewer than are active
        ("moe_layer(s='3/8', g='1/4')", ["s", "3/8", "line 6"]),
        ("moe_layer(s='1/2', g='1/4')", ["s", "1/2", "line 6"]),
        ("moe_layer(s=4, g='2/3')", ["g", "2/3", "line 6"]),
        ("{'model.experts': 'n=0 g=1/2'}", ["model.experts", "n", "0"]),
        # k > n
        ("{'model.experts': 'n=4 k=8 g=1/8'}", ["model.experts", "k = 8", "n = 4"]),
        ("{'model.experts': 'n=4 g=1/8'}", ["model.experts", "k = 8", "n = 4"]),
        # k * g is not 1
        ("{'model.experts': 'n=8 k=2 g=1/4'}", ["model.experts", "k=2", "1/2", "waive"]),
        ("{'model.experts': 'n=8 k=4 g=1/4', 'model.generalist': '1/4'}", ["model.experts", "5/4"]),
        # widths: d_ff is 64
        ("{'model.experts': 'n=6 k=3 g=1/3'}", ["g", "1/3", "64"]),
        ("{'model.experts': 'n=256 k=128 g=1/128'}", ["g", "1/128", "64"]),
        # what is not even a layer
        ("{'model.experts': 'n=4 k=2 g=0.5'}", ["g", "0.5", "1/4"]),
        ("{'model.experts': 'four'}", ["model.experts", "four"]),
        ("{'model.expert': 'dense'}", ["model.expert", "model.experts"]),
        ("{'model.layers': 'two'}", ["model.layers", "two", "int"]),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_are_told(desk, point: str, names: list[str]):
    desk.write("sweeps/odd.py", GRID.format(f"Grid([{{}}, {point}])"))
    refused(desk, grid="odd", names=names)
    refused(desk, "plan", grid="odd", names=names)


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("--config.model.experts=dense", ["model.experts", "grid"]),
        ("--config.optimiser.learning_rate=1", ["optimiser.learning_rate", "optimizer.learning_rate"]),
        ("--config.optimizer=adam", ["--config.optimizer", "adam"]),
        ("--config.optimizer.learning_rate=fast", ["optimizer.learning_rate", "fast", "float"]),
        ("--config.optimizer.learning_rate=-1", ["optimizer.learning_rate", "-1"]),
        ("--config.optimizer.learning_rate=nan", ["optimizer.learning_rate", "nan"]),
        ("--config.budget.batch_size=8.5", ["budget.batch_size", "8.5", "int"]),
        ("--config.model.heads=3", ["model.heads", "3", "16"]),
        ("--config.budget.tokens=1", ["budget.tokens", "256"]),
        ("--config.router.group=3", ["router.group", "3", "8"]),
        ("--config.execution.micro_batch=3", ["execution.micro_batch", "3", "8"]),
        ("--config.data.tokenizer=gpt2", ["gpt2", "bytes"]),
        ("--config.seed", ["--config.seed"]),
        ("--stroe=x", ["--stroe=x"]),
        ("--seeds=0", ["--seeds", "0"]),
        ("--only=*-n9-*", ["*-n9-*", "smoke-"]),
        ("--max_concurrent=-1", ["max_concurrent", "-1"]),
    ],
)
def test_arguments_that_cannot_be_are_told(desk, argument: str, names: list[str]):
    refused(desk, argument, names=names)


def test_a_mesh_with_more_devices_than_experts_is_told(desk):
    shape = "--config.execution.mesh=expert=8", "--config.router.group=1", "--config.execution.micro_batch=1"
    refused(desk, *shape, names=["execution.mesh", "n = 4", "expert=4"])
    # Those that it fits are trained.
    assert desk.sweep(*shape, "--only", "*n8*").status == 0


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("empty.txt", b"", ["empty.txt"]),
        ("blank.txt", b" \n\n", ["blank.txt"]),
        ("latin.txt", "erste\nGrüße\n".encode("latin-1"), ["latin.txt:2", "UTF-8"]),
        ("binary.txt", bytes(range(256)), ["binary.txt", "UTF-8"]),
        ("one.txt", b"a document alone", ["one.txt", "two"]),
        ("odd.jsonl", b'{"text": "one"}\n{"text": \n', ["odd.jsonl:2"]),
        ("odd.pdf", b"%PDF", ["odd.pdf", ".txt"]),
    ],
)
def test_text_that_cannot_be_used_is_told(desk, name: str, content: bytes, names: list[str]):
    desk.write(name, content)
    refused(desk, f"--config.data.source={name}", names=names)
    assert not (desk.folder / "runs" / "runs").exists()
    # With other text, the same store goes on.
    assert desk.sweep().status == 0


def test_text_that_is_not_there_is_told(desk):
    refused(desk, "--config.data.source=there/is/none", names=["there/is/none"])


@pytest.mark.parametrize("verb", ["run", "plan", "status", "report"])
@pytest.mark.parametrize("marker", [json.dumps({"layout": LAYOUT + 1}), "{"])
def test_a_store_that_another_version_wrote_is_refused(desk, verb: str, marker: str):
    desk.write("runs/store.json", marker)
    desk.write("runs/runs/0123456789ab/result.json", "{}")
    before = {path: path.read_bytes() for path in (desk.folder / "runs").rglob("*") if path.is_file()}
    refused(desk, verb, names=["runs", "version"])
    assert {path: path.read_bytes() for path in (desk.folder / "runs").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("verb", ["run", "plan", "status", "report"])
def test_a_folder_that_is_no_store_is_refused(desk, verb: str):
    refused(desk, verb, "--store", "texts", names=["texts", "--store"])
    refused(desk, verb, "--store", "fake.py", names=["fake.py", "--store"])


def test_an_unknown_verb_lists_those_there_are(desk, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        desk.sweep("trian")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert all(known in error for known in ("trian", "plan", "status", "report"))
    assert desk.launched == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_store_that_cannot_be_written_is_told(desk, monkeypatch: pytest.MonkeyPatch, number: int):
    def refuse(self: Store) -> Store:
        raise OSError(number, os.strerror(number), "runs/store.json")

    monkeypatch.setattr(Store, "create", refuse)
    refused(desk, names=["runs/store.json", os.strerror(number)])
    assert ("full" in desk.sweep().err) is (number in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["evaluation_sets=nothing"], "nothing cannot be read: No such file"),
        (["evaluation_sets=paloma"], "execution.evaluation_data = '' cannot be used: name the folder"),
        (["evaluation_sets=paloma", "evaluation_data=texts"], "'paloma' is not below the data folder "),
        (["evaluation_tasks=mmlu", "evaluation_data=texts"], "mmlu"),
    ],
)
def test_what_is_not_there_to_evaluate_on_is_told_before_training(desk, settings: list[str], message: str):
    said = desk.sweep(*(f"--config.execution.{setting}" for setting in settings))
    assert said.status == 2
    assert message in said.err
    assert desk.launched == []
