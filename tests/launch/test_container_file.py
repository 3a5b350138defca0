"""The container file: no Docker is needed here, so that it is read, and what it copies is installed."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

TOP = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """Instructions of the file, each with what follows it, continued lines as one."""
    text = re.sub(r"\\\n\s*", "", (TOP / "launch" / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines()]
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")
    ]


def given(kind: str) -> list[str]:
    return [words for name, words in instructions() if name == kind]


def copied() -> list[str]:
    """What is copied, from the top of the checkout."""
    return [source for words in given("COPY") for source in shlex.split(words)[:-1]]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps something at the top of the checkout out; its last line that fits decides."""
    lines = [line for line in (TOP / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    fits = [line for line in lines if fnmatch.fnmatch(path, line.lstrip("!"))]
    return bool(fits) and not fits[-1].startswith("!")


def project() -> dict:
    return tomllib.loads((TOP / "pyproject.toml").read_text())


def test_all_that_is_copied_is_there_and_reaches_the_builder():
    assert len(copied()) >= 8
    for source in copied():
        assert (TOP / source).exists(), source
        assert not ignored(source), source
    for private in (".git", "runs", ".venv", "tests", "docs"):
        assert ignored(private), private


def test_what_is_copied_is_the_whole_package(tmp_path):
    for source in copied():
        path, skip = TOP / source, shutil.ignore_patterns("__pycache__", "*.egg-info")
        if path.is_dir():
            shutil.copytree(path, tmp_path / "src" / source, ignore=skip)
        else:
            (tmp_path / "src").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "src" / source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(tmp_path / "src")], check=True, cwd=tmp_path, timeout=300)
    (wheel,) = tmp_path.glob("slicedice-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"slicedice/work.py", "slicedice/launch/jobset.py", "slicedice/sweeps/paper.py"} < set(names)
    assert any(name.startswith("slicedice/experiments/") for name in names)


def test_extras_are_those_of_the_project():
    (install,) = [words for words in given("RUN") if "pip install" in words]
    assert '".[${EXTRA},gcs]"' in install
    assert "--constraint constraints.txt" in install
    assert "constraints.txt" in copied()
    extras = project()["project"]["optional-dependencies"]
    assert "EXTRA=tpu" in given("ARG")
    named = set(re.findall(r"EXTRA=(\w+)", (TOP / "launch" / "Dockerfile").read_text()))
    assert named == {"tpu", "cuda"}
    assert {*named, "gcs", "wandb"} <= set(extras)


def test_python_is_one_that_the_project_takes():
    (version,) = [words.partition("=")[2] for words in given("ARG") if words.startswith("PYTHON=")]
    least = project()["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))
    assert given("FROM") == ["python:${PYTHON}-slim"]


def test_workers_run_as_no_root_and_are_told_to_stop_themselves():
    order = [name for name, _ in instructions()]
    assert given("USER") == ["worker"]
    assert order.index("USER") > max(n for n, name in enumerate(order) if name == "RUN")
    # An entry point that does not pass signals on would keep workers from saving a checkpoint.
    assert "ENTRYPOINT" not in order
    (command,) = given("CMD")
    assert command.startswith('["python", "-m", "slicedice.work"')


def test_no_secret_is_in_it():
    text = (TOP / "launch" / "Dockerfile").read_text()
    assert not re.search(r"(?i)token|secret|passw|credential|api_?key|--(extra-)?index-url|://\w+:\w+@", text)
    assert not [words for words in given("COPY") if words.startswith(".")]  # nothing comes along unnamed
