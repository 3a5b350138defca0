"""Which commit a result comes from."""

import subprocess
from pathlib import Path

import pytest

from slicedice import provenance


def repository(folder: Path) -> str:
    """Makes a repository with one commit; returns that."""
    folder.mkdir()
    for command in (
        ["init", "--quiet"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has the package be in `folder`."""
    file = folder / "slicedice" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(file))
    return file


def test_a_checkout_is_known_by_its_commit_and_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit = repository(tmp_path / "checkout")
    install(tmp_path / "checkout", monkeypatch)
    assert provenance.git_revision() == f"{commit}+changes"  # the file is not committed
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "checkout" / ".git" / "provenance.py"))
    assert provenance.git_revision() is None


@pytest.mark.parametrize("where", ["project/.venv/lib", "alone"])
def test_another_projects_commit_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    repository(tmp_path / "project")
    install(tmp_path / where, monkeypatch)
    assert provenance.git_revision() is None


def test_of_the_environment_only_names_that_are_allowed_are_recorded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-2")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    found = provenance.provenance("f")
    assert found["environment"]["SLURM_JOB_ID"] == "17"
    assert "secret" not in str(found)
