"""Launchers are files that users add; their settings are read by the type of what they replace."""

import re
from pathlib import Path
from typing import Any

import pytest

from slicedice.files import FileError
from slicedice.launching import Attended, Launcher, load_launcher
from slicedice.spec import SpecError

CLUSTER = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Cluster:
    partition: str = "all"
    nodes: int = 1
    share: float = 0.5
    spot: bool = False
    zones: tuple = ("a",)

    def __post_init__(self):
        from slicedice.spec.errors import require
        require(self.nodes > 0, "--launcher.nodes", self.nodes, "use a number from 1")

    def render(self, job): return {}
    def submit(self, job, rendered): return []
    def poll(self, launch): return []
    def cancel(self, launch, units): pass
    def logs(self, launch, unit): return ""

def get_launcher():
    return Cluster()
"""


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`launch/cluster.py` in a working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "launch" / "cluster.py"
    path.parent.mkdir()
    path.write_text(CLUSTER)
    return path


def load(name: str = "cluster", **settings: Any) -> Any:
    return load_launcher(name, settings)


def test_this_machine_is_one_that_is_attended():
    assert isinstance(load("local"), Attended)
    assert not isinstance(load(), Attended)
    assert isinstance(load(), Launcher)


@pytest.mark.parametrize("name", ["cluster", "launch/cluster.py", "./launch/cluster.py"])
def test_by_name_or_path_as_it_is_or_with_settings(name: str):
    assert repr(load(name)) == repr(load(name, partition="all", nodes="1", share="0.5", spot="false"))
    changed = load(name, partition="", nodes="12", share="1e-3", spot="true")
    assert (changed.partition, changed.nodes, changed.share, changed.spot) == ("", 12, 0.001, True)


def test_settings_of_a_record_come_with_their_types():
    changed = load(partition="x", nodes=12, share=0.25, spot=True)
    assert (changed.partition, changed.nodes, changed.share, changed.spot) == ("x", 12, 0.25, True)


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("nodes", "many", "has to be of type int"),
        ("nodes", "1.5", "has to be of type int"),
        ("nodes", "", "has to be of type int"),
        ("nodes", 1.5, "has to be of type int"),
        ("nodes", True, "has to be of type int"),
        ("share", "half", "has to be of type float"),
        ("share", 1, "has to be of type float"),
        ("spot", "yes", "has to be of type bool"),
        ("spot", 1, "has to be of type bool"),
        ("partition", 5, "has to be of type str"),
        ("zones", "a", "has to be of type tuple"),
        ("node", "1", "cluster has no such setting; it has partition, nodes, share, spot, zones"),
        ("__class__", "x", "no such setting"),
        ("poll", "x", "no such setting"),
    ],
)
def test_a_setting_that_cannot_be_is_told_with_what_could(setting: str, value: Any, told: str):
    named = re.escape(f"--launcher.{setting} = {value!r}")
    with pytest.raises(SpecError, match=f"{named} cannot be used: .*{told}"):
        load(**{setting: value})


def test_what_a_launcher_says_of_its_settings_itself_is_told():
    with pytest.raises(SpecError, match=r"--launcher\.nodes = 0 cannot be used: use a number from 1"):
        load(nodes="0")


def test_one_without_settings_says_so():
    with pytest.raises(SpecError, match="local has no such setting; it has none"):
        load("local", nodes="1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "no function get_launcher"),
        ("get_launcher = 5", "no function get_launcher"),
        ("def get_launcher():\n    return None", "get_launcher() has to return a dataclass"),
        (CLUSTER.replace("return Cluster()", "return Cluster"), "get_launcher() has to return a dataclass"),
        (CLUSTER.replace("@dataclasses.dataclass(frozen=True)", ""), "get_launcher() has to return a dataclass"),
        (CLUSTER.replace("def logs", "def log"), "get_launcher() has to return a dataclass"),
        (CLUSTER.replace("return Cluster()", "return Cluster(nodes=0)"), "line 14: SpecError: --launcher.nodes = 0"),
        ("def get_launcher():\n    import no_such_engine", "line 2: ModuleNotFoundError"),
        ("import no_such_engine", "line 1: ModuleNotFoundError"),
        ("def get_launcher(:", "line 1: SyntaxError"),
        ("raise SystemExit(3)", "line 1: SystemExit"),
    ],
)
def test_a_file_that_is_no_launcher_is_told(cluster: Path, text: str, told: str):
    cluster.write_text(text)
    with pytest.raises(FileError, match=re.escape(told)) as caught:
        load()
    assert str(cluster) in str(caught.value)


@pytest.mark.parametrize("name", ["no_such", "", "launch/no_such.py", "../launch", "cluster.py"])
def test_what_is_not_there_is_told_with_what_is(name: str):
    with pytest.raises(FileError, match="cluster") as caught:
        load(name)
    assert "local" in str(caught.value)
