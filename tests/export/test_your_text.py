"""The page docs/your_text.md: its commands, run as they are written, on a small folder of text."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from slicedice.data.account import Account
from slicedice.data.embedded import Embedded

PAGE = (Path(__file__).parents[2] / "docs" / "your_text.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
(PYTHON,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which all commands of the page were run, and what each printed."""
    folder = tmp_path_factory.mktemp("page")
    (part,) = Embedded().parts()
    for number, document in zip(range(60), part.read(Account(skip=False)), strict=False):
        room = folder / ("other_texts" if number >= 54 else "my_texts") / document.domain
        room.mkdir(parents=True, exist_ok=True)
        (room / f"{number}.txt").write_text(document.text)
    return folder, [_run(folder, sys.executable, *shlex.split(command)[1:]) for command in COMMANDS]


def test_the_page_goes_all_the_way():
    verbs = [" ".join(shlex.split(command)[1:4]) for command in COMMANDS]
    doors = ["data train", "data prepare", "data inspect", "train --config", "evaluate --run", "export --run"]
    assert [verb.removeprefix("-m slicedice.") for verb in verbs] == doors


def test_its_commands_work(done: tuple[Path, list[str]]):
    folder, said = done
    assert said[0] == "my_tokenizer.json: 1,024 ids.\n"
    assert "--config.model.vocab_size=1024" in said[1]
    assert "no held-out document is trained on" in said[2]
    assert "nano-g1/2-n8-s4-dropless-seed0" in said[3]
    assert "other_texts" in said[4]
    assert (folder / "my_model" / "model.safetensors").exists()


def test_transformers_samples_from_what_it_exports(done: tuple[Path, list[str]]):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    text = _run(done[0], sys.executable, "-c", PYTHON)
    assert text.startswith("The")
    assert len(text) > 10
