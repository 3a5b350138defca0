"""What engines have in their queues; and that what a store says of launchers executes nothing of the store's."""

import json
import os
import shutil
from pathlib import Path

import pytest

from slicedice.launching import Phase
from slicedice.launching.queue import REFUSED, queue
from slicedice.store import Launch, Store
from slicedice.store.holder import Holder
from slicedice.store.launches import write_launch

ENGINE = """
import dataclasses, json
from pathlib import Path
from slicedice.launching import LaunchError, Phase

with open("loaded", "a") as file:
    print(__file__, file=file)

@dataclasses.dataclass(frozen=True)
class Engine:
    partition: str = "all"

    def render(self, job): return {}
    def submit(self, job, rendered): return []
    def cancel(self, launch, units): pass
    def logs(self, launch, unit): return ""
    def poll(self, launch):
        with open("asked", "a") as file:
            print(launch.name, self.partition, *launch.handles, file=file)
        if self.partition == "away":
            raise LaunchError("the engine is away")
        return [Phase(handle.partition(".")[2]) for handle in launch.handles]
"""
ATTENDED = ENGINE + "    def attend(self, job): pass\n"
GET = "\ndef get_launcher():\n    return Engine()\n"

IDS = [f"{i:012x}" for i in range(8)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store, in a working folder that has launchers."""
    monkeypatch.chdir(tmp_path)
    for path, text in {"launch/cluster.py": ENGINE, "launch/desk.py": ATTENDED, "mine/engine.py": ENGINE}.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text + GET)
    return Store(tmp_path / "store").create()


def launch(store: Store, phases: str, units: str, launcher: str = "cluster", **settings: str) -> Launch:
    """Puts a launch on record of units such as "01 2", runs by their last digits, in such phases as "queued ended"."""
    name = store.next_launch("x")
    ids = tuple(tuple(IDS[int(digit)] for digit in unit) for unit in units.split())
    handles = tuple(f"{number}.{phase}" for number, phase in enumerate(phases.split()))
    made = Launch(name, store.launch_folder(name), launcher, settings, ids, handles)
    write_launch(made, {})
    return made


def lines(name: str) -> list[str]:
    return Path(name).read_text().splitlines() if Path(name).exists() else []


def test_runs_have_the_places_of_their_units(store: Store):
    made = launch(store, "running ended queued", "01 23 4")
    found = queue(store, IDS)
    places = {id_: (place.launch, place.unit, place.phase) for id_, (place,) in found.places.items()}
    assert places == {
        IDS[0]: (made, 0, Phase.RUNNING),
        IDS[1]: (made, 0, Phase.RUNNING),
        IDS[4]: (made, 2, Phase.QUEUED),
    }
    assert found.on_clusters == {IDS[0], IDS[1], IDS[4]}
    assert found.notes == ()


def test_a_run_that_was_launched_again_has_its_place_there(store: Store):
    launch(store, "ended", "01")
    later = launch(store, "queued", "10")
    launch(store, "ended", "0")
    assert {place.launch.name for (place,) in queue(store, IDS).places.values()} == {later.name}


def test_a_run_that_waits_twice_has_both_places_the_newest_last(store: Store):
    first, second = launch(store, "running", "01"), launch(store, "queued queued", "2 1")
    found = queue(store, IDS)
    assert [(place.launch, place.unit) for place in found.places[IDS[1]]] == [(first, 0), (second, 1)]
    assert found.to_begin == {IDS[1], IDS[2]}


def test_a_launch_that_its_engine_may_have_is_a_note(store: Store):
    interrupted, refused = launch(store, "", "0"), launch(store, "", "0")
    (refused.folder / REFUSED).write_text("no")
    (note,) = queue(store, IDS).notes
    assert interrupted.name in note
    assert str(interrupted.folder) in note
    assert queue(store, IDS[1:]).notes == ()


def test_a_record_that_was_named_by_hand_is_not_asked_about(store: Store):
    made = launch(store, "queued", "0")
    made.folder.rename(made.folder.with_name("their-job"))
    assert queue(store, IDS).places == {}
    assert lines("asked") == []


def test_a_launch_from_a_store_elsewhere_is_a_note(store: Store, tmp_path: Path):
    """Of which this is a copy: the original's jobs are neither waited for here nor cancelled from here."""
    made = launch(store, "queued", "0")
    launch(store, "queued", "0", "desk")  # for which a sweep waited, and which leaves nothing behind
    shutil.copytree(store.root, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    assert copy.next_launch("x") == f"x-{copy.tag}-3"
    mine = launch(copy, "queued", "1")
    found = queue(copy, IDS)
    assert {place.launch.name for (place,) in found.places.values()} == {mine.name}
    (note,) = found.notes
    assert made.name in note
    assert str(copy.launch_folder(made.name)) in note
    assert [line.split()[0] for line in lines("asked")] == [mine.name]
    assert queue(copy, IDS[1:]).notes == ()
    gone, path = launch(store, "queued", "2", "gone"), launch(store, "queued", "2", "mine/engine.py")
    shutil.copytree(store.root / "launches", copy.root / "launches", dirs_exist_ok=True)
    loaded = len(lines("loaded"))
    assert [note.partition(" was ")[0] for note in queue(copy, [IDS[2]]).notes] == [gone.name, path.name]
    assert len(lines("loaded")) == loaded


@pytest.mark.parametrize("path", ["store", "./store/", "mine/../store", "link", "link/../store"])
def test_a_launch_is_the_stores_by_whatever_path_it_is_named(store: Store, path: str):
    made = launch(store, "queued", "0")
    Path("link").symlink_to("store", target_is_directory=True)
    same = Store(path)
    found = queue(same, IDS)
    assert [place.launch.name for (place,) in found.places.values()] == [made.name]
    assert found.notes == ()
    assert same.next_launch("x").rpartition("-")[0] == made.name.rpartition("-")[0]


def test_engines_are_asked_about_the_runs_in_question_alone(store: Store):
    launch(store, "queued", "01")
    second = launch(store, "queued queued", "2 3")
    launch(store, "", "2")  # of which its engine never heard
    assert queue(store, IDS[3:4]).places.keys() == {IDS[2], IDS[3]}
    assert lines("asked") == [f"{second.name} all 0.queued 1.queued"]
    assert queue(store, []).places == queue(store, IDS[6:]).places == {}
    assert len(lines("asked")) == 1


def test_what_a_sweep_waits_for_itself_is_in_no_clusters_queue(store: Store):
    launch(store, "queued", "0", "desk")
    launch(store, "queued", "1")
    found = queue(store, IDS)
    assert found.places.keys() == {IDS[0], IDS[1]}
    assert found.on_clusters == {IDS[1]}


def test_this_machine_has_its_runs_queued_as_long_as_the_sweep_lives(store: Store):
    here = Holder.here()
    gone = Holder(here.host, here.machine, here.pid, here.started - 1)
    for number, handle in enumerate((here.handle, gone.handle, "x:1:1", "7")):
        made = launch(store, "", str(number), "local")
        write_launch(Launch(made.name, made.folder, "local", {}, made.units, (handle,)), {})
    found = queue(store, IDS)
    assert {id_: place.phase for id_, (place,) in found.places.items()} == {IDS[0]: Phase.QUEUED}
    assert found.on_clusters == found.to_begin == set()


def test_an_engine_that_cannot_be_asked_is_a_note(store: Store):
    launch(store, "queued", "0", partition="away")
    launch(store, "queued", "1", nodes="2")
    launch(store, "queued", "2", "gone")
    last = launch(store, "queued", "3")
    found = queue(store, IDS)
    assert [place.launch for (place,) in found.places.values()] == [last]
    away, setting, gone = found.notes
    assert "cluster cannot be asked about" in away
    assert "the engine is away" in away
    assert "--launcher.nodes = '2'" in setting
    assert "unknown name 'gone' in launch" in gone


def test_a_launcher_that_is_a_path_is_asked_when_it_is_named(store: Store):
    made = launch(store, "queued", "0", "mine/engine.py")
    found = queue(store, IDS)
    assert found.places == {}
    assert found.notes == (f"--launcher mine/engine.py has its engine asked about {made.name}.",)
    assert lines("loaded") == []
    assert queue(store, IDS, "cluster").notes == found.notes
    assert queue(store, IDS, "./mine/engine.py").notes == found.notes
    named = queue(store, IDS, "mine/engine.py")
    assert (named.places.keys(), named.notes) == ({IDS[0]}, ())


HOSTILE = [
    {"launcher": "store/evil.py"},
    {"launcher": "./store/evil.py"},
    {"launcher": "../evil"},
    {"launcher": "store/evil"},
    {"launcher": "evil.py"},
    {"launcher": "evil"},
    {"launcher": ["evil"]},
    {"launcher": {"evil": 1}},
    {"launcher": "cluster\n"},
    {"launcher": "__import__('os').system('touch loaded')"},
    {"handles": ["-x.queued"]},
    {"handles": ["--flag=1"]},
    {"handles": ["1.queued; touch loaded"]},
    {"handles": "1.queued"},
    {"handles": [["1.queued"]]},
    {"units": [["../../evil"]]},
    {"units": [["-f"]]},
    {"units": "000000000000"},
    {"settings": {"partition": {"evil": 1}, "other": "x"}},
    {"settings": {"__class__": "evil"}},
    {"settings": {"poll": "evil"}},
    {"settings": ["evil"]},
]


@pytest.mark.parametrize("content", HOSTILE)
def test_a_record_in_somebodys_store_executes_nothing(store: Store, content: dict, tmp_path: Path):
    """Neither files that lie in the store or that it names, nor what it gives as names."""
    for path in ("store/evil.py", "store/launch/evil.py", "evil.py", "store/launches/evil.py"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("open('evil was here', 'w').close()\n" + ENGINE + GET)
    made = launch(store, "queued", "0")
    record = json.loads((made.folder / "launch.json").read_text())
    (made.folder / "launch.json").write_text(json.dumps(record | content))
    found = queue(store, IDS, "cluster")
    assert found.places == {}
    assert not Path("evil was here").exists()
    assert lines("asked") == []
    assert lines("loaded") in ([], [str(tmp_path / "launch" / "cluster.py")])
    assert os.listdir(store.root / "launches").count(made.name) == 1


def test_more_or_fewer_handles_than_units_harm_nothing(store: Store):
    launch(store, "queued", "0 1 2")
    launch(store, "queued queued queued", "3")
    assert queue(store, IDS).places.keys() == {IDS[0], IDS[3]}
