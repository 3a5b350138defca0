"""Objects and claims in a bucket: what is made once, what others see, and what an outage costs."""

import errno
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from google.auth import exceptions as google_auth  # pyright: ignore[reportMissingImports]

from slicedice import copies, sweep, work
from slicedice.data import DataError
from slicedice.faults import is_bucket_gone
from slicedice.launching import Job, WorkUnit, load_launcher
from slicedice.spec import SpecError, run_id
from slicedice.store import Attempt, Kind, Launch, RunFolder, Store, StoreError, attempt, drafts, metrics
from slicedice.store.attempt import attempts
from slicedice.store.drafts import Draft
from slicedice.store.files import BucketError, create, read_end, read_json, remove_all, size_of, write_whole
from slicedice.store.launches import read_launch, write_launch
from slicedice.store.objects import service
from tests.remote.gcs_emulator import UNHEARD, UNTOLD, Bucket, Emulator

RACE = """
import json, os, sys
from slicedice.store.files import as_path, create
root = as_path(sys.argv[1])
root.exists()
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([create(root / f"{i}.json", {"pid": os.getpid()}) for i in range(30)]))
"""


def lines(count: int) -> str:
    return "".join(f'{{"step": {i}}}\n' for i in range(count))


def once(emulator: Emulator, fault: int, wanted: str) -> list[str]:
    """Has the next request that fits meet a fault; returns a list of those that did."""
    met: list[str] = []

    def decide(method: str, path: str) -> int:
        if met or wanted not in f"{method} {path}":
            return 0
        met.append(f"{method} {path}")
        return fault

    emulator.fault = decide
    return met


def test_what_is_written_is_there_and_listed_and_goes(root: Path, bucket: Bucket):
    write_whole(root / "a" / "é 1#?%2F.txt", "häuser")
    write_whole(root / "a" / "b" / "2.txt", b"2")
    write_whole(root / "ab", b"no part of a")
    assert sorted(bucket.blobs) == ["some/store/a/b/2.txt", "some/store/a/é 1#?%2F.txt", "some/store/ab"]
    assert [path.name for path in (root / "a").glob("*")] == ["b", "é 1#?%2F.txt"]
    assert [path.name for path in root.glob("a/b/[0-9]*")] == ["2.txt"]
    assert (root / "a" / "é 1#?%2F.txt").read_text() == "häuser"
    assert (root / "a").is_dir()
    assert not (root / "a").exists()
    assert size_of(root / "a") == 8
    assert size_of(root / "ab") == 12
    remove_all(root / "a")
    assert sorted(bucket.blobs) == ["some/store/ab"]
    (root / "ab").unlink()
    with pytest.raises(FileNotFoundError):
        (root / "ab").unlink()
    (root / "ab").unlink(missing_ok=True)


def test_a_folder_of_more_than_a_page_is_listed_whole(root: Path, bucket: Bucket):
    for i in range(2500):
        bucket.put(f"some/store/runs/{i:05}/spec.json", b"{}", "", {})
    assert [path.name for path in (root / "runs").iterdir()] == [f"{i:05}" for i in range(2500)]


def test_the_end_of_a_file_is_read_alone(root: Path, emulator: Emulator):
    write_whole(root / "metrics.jsonl", lines(5000))
    assert read_end(root / "metrics.jsonl", 100) == lines(5000)[-100:].encode()
    before = emulator.requests.total()
    assert metrics.last_step(root / "metrics.jsonl") == 4999
    assert emulator.requests.total() == before + 1
    assert metrics.last_step(root / "nothing") is None
    assert read_end(root / "metrics.jsonl", 10**6) == lines(5000).encode()
    write_whole(root / "metrics.jsonl", "")  # as after a run went back to its beginning
    assert metrics.last_step(root / "metrics.jsonl") is None


def test_of_many_processes_one_makes_an_object(root: Path, bucket: Bucket):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(root)], stdin=-1, stdout=-1, text=True) for _ in range(4)
    ]
    for racer in racers:
        assert cast(Any, racer.stdout).readline() == "ready\n"
    for racer in racers:
        cast(Any, racer.stdin).write("go\n")
        cast(Any, racer.stdin).flush()
    said = {racer.pid: json.loads(racer.communicate(timeout=60)[0]) for racer in racers}
    for i in range(30):
        owner = json.loads(bucket.blobs[f"some/store/{i}.json"].content)["pid"]
        assert [pid for pid, made in said.items() if made[i]] == [owner]


def test_who_made_an_object_and_lost_the_answer_is_told_so(root: Path, emulator: Emulator):
    met = once(emulator, UNTOLD, "POST")
    assert create(root / "claim.json", {"holder": "me"})
    assert met
    assert not create(root / "claim.json", {"holder": "another"})
    assert not create(root / "claim.json", {"holder": "me"})  # the same content makes nobody its maker
    assert read_json(root / "claim.json") == {"holder": "me"}


@pytest.mark.parametrize("fault", [503, 429, UNHEARD])
def test_a_fault_that_passes_is_not_noticed(root: Path, emulator: Emulator, fault: int):
    write_whole(root / "a", "1")
    for wanted, do in {
        "POST": lambda: write_whole(root / "a", "2"),
        "GET": lambda: (root / "a").read_bytes(),
        "DELETE": (root / "a").unlink,
    }.items():
        met = once(emulator, fault, wanted)
        do()
        assert met, wanted


def test_what_others_write_is_seen(root: Path, bucket: Bucket):
    assert list(root.glob("*")) == []
    for number, expected in ((1, [1]), (2, [2, 1])):
        bucket.put(f"some/store/attempts/{number}/claim.json", b"{}", "", {})
        assert [one.number for one in attempts(root)] == expected
    bucket.delete("some/store/attempts/2/claim.json", {})
    assert [one.number for one in attempts(root)] == [1]


@pytest.mark.parametrize(
    "place", ["s3://bucket/x", "gs://", "gs://ab/x", "gs://bucket//x", "gs://bucket/../x", "x://y"]
)
def test_other_addresses_are_refused(place: str):
    with pytest.raises(StoreError, match="gs://BUCKET/FOLDER"):
        Store(place)


def test_a_bucket_that_is_not_there_is_told(emulator: Emulator, capsys: pytest.CaptureFixture):
    assert sweep.main(["gc", "--store", "gs://nobody/runs"]) == 2
    assert "no bucket 'nobody'" in capsys.readouterr().err


def test_a_bucket_that_may_not_be_used_is_told(root: Path, emulator: Emulator, capsys: pytest.CaptureFixture):
    emulator.fault = lambda method, path: 403
    assert sweep.main(["gc", "--store", str(root)]) == 2
    assert "Forbidden" in capsys.readouterr().err


def test_what_is_no_store_is_refused(root: Path, bucket: Bucket):
    write_whole(root / "notes.txt", "mine")
    with pytest.raises(StoreError, match=r"no store\.json"):
        Store(root)
    assert list(bucket.blobs) == ["some/store/notes.txt"]


def test_an_address_leads_back_to_the_store(root: Path):
    assert Store(Store(root).create().address).exists()
    assert Store(root).address == str(root)


def test_a_launch_of_a_name_is_put_on_record_once(root: Path):
    store = Store(root).create()
    launch = Launch("mine-1", store.launch_folder("mine-1"), "local", {}, (("0123456789ab",),))
    write_launch(launch, {"workers.sh": "true\n"})
    assert (launch.folder / "workers.sh").read_text() == "true\n"
    with pytest.raises(StoreError, match="same moment"):
        write_launch(launch, {})
    assert read_launch(launch.folder) == launch
    assert store.next_launch("other").endswith("-2")


def test_a_run_is_trained_by_one_and_taken_over_when_it_was_killed(run: RunFolder, agents):
    first, second = agents(), agents()
    assert first.begin() == 1
    assert second.begin() is None
    assert run.state().kind is Kind.RUNNING
    first.kill()
    first.close()
    assert run.state().kind is Kind.PREEMPTED
    assert second.begin() == 2
    assert run.attempts()[0].holder.pid == second.process.pid  # pyright: ignore[reportOptionalMemberAccess]


def test_silence_of_another_machine_is_waited_for(run: RunFolder, agents, monkeypatch: pytest.MonkeyPatch):
    other = agents(machine="elsewhere")
    assert other.begin() == 1
    monkeypatch.setattr(attempt, "SILENCE_SECONDS", 3.0)
    assert run.claim(patient=True) is None  # it gives signs
    other.kill()
    mine = run.claim(patient=True)
    assert mine
    assert mine.number == 2


def test_who_was_taken_over_from_notices(run: RunFolder):
    mine = run.claim()
    assert mine
    write_whole(run.path / "attempts" / "2" / "claim.json", "{}")
    mine.beat()
    assert mine.is_lost
    assert read_json(run.path / "attempts" / "1" / "beat.json") is None


def test_signs_of_life_that_fail_for_long_end_a_claim(
    run: RunFolder, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
):
    mine = run.claim()
    assert mine
    emulator.fault = lambda method, path: 403
    mine.beat()
    assert not mine.is_lost
    monkeypatch.setattr(attempt, "SILENCE_SECONDS", 0.05)
    time.sleep(0.1)
    mine.beat()
    assert mine.is_lost
    mine.fail(Kind.PREEMPTED, "it was lost")  # which cannot be written, and need not
    emulator.fault = lambda method, path: 0
    assert mine.ending() is None


def test_a_claimed_run_is_cancelled_from_elsewhere(run: RunFolder):
    mine = run.claim()
    assert mine
    with mine:
        run.cancel()
        mine.beat()
        assert mine.is_cancelled
    assert run.state().kind is Kind.CANCELLED


def test_lines_are_there_before_a_checkpoint_and_before_the_result(run: RunFolder):
    mine, there = run.claim(), Attempt(run.path, 1)
    assert mine
    with mine:
        writer = mine.record()
        writer.begin(0)
        writer.write({"step": 0, "loss": 1.0})
        assert mine.steps == 1
        assert there.steps == 0
        mine.publish()
        assert there.steps == 1
        writer.write({"step": 1, "loss": 1.0})
        mine.append_evaluation(1, "held_out", {})
        writer.close()
        mine.finish(Kind.DONE, {"steps": 2})
        assert there.steps == 2
        mine.append_evaluation(2, "late", {})
    assert [line["name"] for line in metrics.read(there.evaluation_lines)] == ["held_out", "late"]
    assert run.state().kind is Kind.DONE
    assert not mine.metrics.parent.exists()


def test_a_half_written_checkpoint_is_none(run: RunFolder):
    step = Attempt(run.path, 1).checkpoints / "training" / "7"
    write_whole(step / "_METADATA", "{}")
    assert not Attempt(run.path, 1).has_checkpoint
    write_whole(step / "commit_success.txt", "yes")
    assert Attempt(run.path, 1).has_checkpoint


def test_a_log_is_gone_on_with(root: Path):
    for word in ("first", "second"):
        draft = Draft(root / "log.txt", goes_on=True)
        with open(draft.path, "a") as file:
            file.write(f"{word}\n")
        draft.close()
    assert (root / "log.txt").read_text() == "first\nsecond\n"


def test_what_grows_is_uploaded_meanwhile_and_not_too_often(
    root: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(drafts, "PUBLISH_SECONDS", 0.02)
    monkeypatch.setattr(drafts, "LEAST_SECONDS", 0.2)
    uploaded: list[float] = []

    def note(method: str, path: str) -> int:
        if method == "POST":
            uploaded.append(time.monotonic())
        return 0

    emulator.fault = note
    draft = Draft(root / "log.txt")
    over = time.monotonic() + 1.0
    while time.monotonic() < over or len(uploaded) < 3:
        with open(draft.path, "a") as file:
            file.write("more\n")
        time.sleep(0.01)
    draft.close()
    assert len(uploaded) < 3 + (time.monotonic() - over + 1.0) / 0.2
    assert not draft.path.parent.exists()


def test_many_runs_are_looked_at_at_once_with_two_requests_each(root: Path, emulator: Emulator, tiny, here: Path):
    store, runs = Store(root).create(), {}
    for seed in range(30):
        spec, execution = tiny({"seed": seed})
        run = store.run(spec)
        runs[run.path.name] = spec, execution
        if seed < 20:
            run.create(spec, execution)
            claim = run.claim()
            assert claim
            claim.finish(Kind.DONE, {"steps": 6})
    lock, now, most, before = threading.Lock(), 0, 0, emulator.requests.total()

    def count(method: str, path: str) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        with lock:
            now -= 1
        return 0

    emulator.fault = count
    looked = store.look(runs)
    assert [looked[id_][0].kind for id_ in runs] == [Kind.DONE] * 20 + [Kind.MISSING] * 10
    # Programs, runs, and versions of specs and results are listed; specs and results read.
    assert emulator.requests.total() - before == 4 + 2 * 20
    assert most > 5


def test_an_outage_is_no_crash():
    assert is_bucket_gone(BucketError(5, "x"))
    assert is_bucket_gone(ValueError("ABORTED: All 32 retry attempts failed: x"))
    error = RuntimeError("a checkpoint could not be read")
    error.__cause__ = BucketError(5, "x")
    assert is_bucket_gone(error)
    assert not is_bucket_gone(ValueError("x"))
    assert not is_bucket_gone(BucketError(errno.EACCES, "x"))  # which would be so again


@pytest.mark.parametrize(
    ("fault", "status"), [(400, 1), (403, 1), (409, 1), (408, 75), (410, 75), (429, 75), (500, 75)]
)
def test_a_worker_asks_to_be_started_again_where_that_may_help(
    root: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, fault, status
):
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", _at_once)
    emulator.fault = lambda method, path: fault
    assert work.main(["--store", str(root), "0123456789ab"]) == status
    assert str(root) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "passes"),
    [
        (ValueError("Bad Request: b/x\ninvalid argument"), False),
        (google_auth.DefaultCredentialsError("there are none"), False),
        (google_auth.MalformedError("no key"), False),
        (google_auth.RefreshError("invalid_grant"), False),
        (google_auth.RefreshError("try again", retryable=True), True),
        (google_auth.TransportError("the network is gone"), True),
        (google_auth.TimeoutError("no answer"), True),
        (json.JSONDecodeError("half an answer", "{", 1), True),
        (OSError(errno.ECONNRESET, "reset"), True),
    ],
)
def test_what_stays_so_is_told_from_what_passes(root: Path, monkeypatch: pytest.MonkeyPatch, raised, passes: bool):
    assert _told(root, monkeypatch, raised).passes is passes


def test_what_gcsfs_gives_up_stays_so(root: Path, monkeypatch: pytest.MonkeyPatch):
    service()
    from gcsfs.retry import NonRetryableError  # pyright: ignore[reportMissingImports]

    assert not _told(root, monkeypatch, NonRetryableError("credentials lack fields")).passes


def _told(root: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception) -> BucketError:
    def call(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(service(), "call", call)
    with pytest.raises(BucketError, match=type(raised).__name__) as told:
        root.exists()
    return told.value


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_where_an_object_is_copied_to_is_not_the_buckets(
    root: Path, here: Path, asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny, number: int
):
    """A worker ends with 28, at which engines stop: to start it again makes no room."""

    async def write(*_: Any, **__: Any) -> None:
        raise OSError(number, "no room", str(tmp_path))

    store = Store(root).create()
    copies.prepare_tokens(store, *asked)
    fields = ("data.source", "data.tokenizer", "data.heldout_fraction")
    spec, execution = tiny(dict(zip(fields, asked, strict=False)))
    store.run(spec).create(spec, execution)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    monkeypatch.setattr(service(), "_get_file_request", write)
    assert work.main(["--store", str(root), run_id(spec)]) == work.DISK_FULL


async def _at_once(_: float) -> None:
    """Stands for the time between two tries."""


def test_a_state_is_not_made_up_in_an_outage(run: RunFolder, emulator: Emulator):
    emulator.fault = lambda method, path: 403
    with pytest.raises(BucketError):
        run.state()


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / "text" / f"{i}.txt").write_text(f"text number {i} " * 20)
    return str(tmp_path / "text")


@pytest.fixture
def asked(text: str) -> tuple[str, str, float, int]:
    """A request for tokens, as doors make it."""
    return text, "bytes", 0.1, 0


def test_tokens_are_fetched_once_by_a_machine(
    root: Path, emulator: Emulator, here: Path, asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = Store(root).create()
    made = copies.prepare_tokens(store, *asked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    opened = copies.open_tokens(store, *asked)
    assert opened.fingerprint == made.fingerprint
    assert opened.path.is_relative_to(tmp_path / "another")
    assert (opened.train == made.train).all()
    before = emulator.requests["GET download"]
    assert copies.open_tokens(store, *asked).path == opened.path
    found = copies.find_tokens(store, made.fingerprint)
    assert found
    assert found.path == opened.path
    assert emulator.requests["GET download"] == before
    assert copies.find_tokens(store, "0" * 12) is None


def test_who_prepared_tokens_does_not_fetch_them(root: Path, emulator: Emulator, here: Path, asked):
    store = Store(root).create()
    made, before = copies.prepare_tokens(store, *asked), emulator.requests["GET download"]
    assert copies.open_tokens(store, *asked).fingerprint == made.fingerprint
    assert emulator.requests["GET download"] == before


def test_tokens_that_arrive_damaged_are_refused_and_leave_nothing(
    root: Path, bucket: Bucket, here: Path, asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = Store(root).create()
    copies.prepare_tokens(store, *asked)
    (name,) = (name for name in bucket.blobs if name.endswith("train.bin"))
    content = bytearray(bucket.blobs[name].content)
    content[7] ^= 1
    bucket.put(name, bytes(content), "", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with pytest.raises(DataError, match="fingerprint"):
        copies.open_tokens(store, *asked)
    assert not [path for path in (tmp_path / "another").rglob("*") if path.is_dir() and path.name != "tokens"][1:]


def test_tokens_that_are_not_there_are_told(root: Path, here: Path, asked):
    with pytest.raises(DataError, match="Prepare them first"):
        copies.open_tokens(Store(root).create(), *asked)


@pytest.mark.parametrize("answer", ["../x", "/etc", 7])
def test_an_answer_that_leads_elsewhere_is_not_followed(root: Path, bucket: Bucket, here: Path, asked, answer):
    store = Store(root).create()
    copies.prepare_tokens(store, *asked)
    (name,) = (name for name in bucket.blobs if name.startswith("some/store/data/") and name.endswith(".json")
               and name.count("/") == 3)  # fmt: skip
    bucket.put(name, json.dumps({"store": answer}).encode(), "", {})
    with pytest.raises(DataError):
        copies.open_tokens(store, *asked)


def test_task_files_travel_by_the_store(
    root: Path, here: Path, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    store = Store(root).create()
    folder = copies.tasks(store)
    write_whole(folder / "boolq-12345678" / "dev.jsonl", "{}\n")
    copies.publish_tasks(store, folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert (copies.tasks(store) / "boolq-12345678" / "dev.jsonl").read_text() == "{}\n"
    bucket.put("some/store/tasks/../../escaped", b"x", "", {})
    with pytest.raises(DataError, match="no name for a file"):
        copies.tasks(store)


@pytest.mark.parametrize(("name", "settings"), [("slurm", {}), ("xmanager", {"executor": "local"})])
def test_launchers_whose_logs_lie_in_the_store_refuse_a_bucket(root: Path, tiny, name: str, settings: dict[str, Any]):
    job = Job("mine-1", Store(root), (WorkUnit(("0123456789ab",)),))
    with pytest.raises(SpecError, match="--store"):
        load_launcher(name, settings).render(job)
