"""Where workers run: cores, memory and accelerators of this machine, all of them made up here."""

from pathlib import Path

import pytest

from slicedice import machine
from slicedice.cost import RATES
from slicedice.machine import CPU_ENVIRONMENT, WORKER_BYTES, Slot, slots


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    plugins(monkeypatch)


def plugins(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Has these modules be installed, and no other."""
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: name if name in names else None)


def cpu(monkeypatch: pytest.MonkeyPatch, cores: list[int], workers: float) -> None:
    """Has the machine have these cores, and memory for so many workers."""
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "memory", lambda: int(workers * WORKER_BYTES))


def test_cores_are_divided_between_workers(monkeypatch: pytest.MonkeyPatch):
    cpu(monkeypatch, [2, 3, 5, 7, 11, 13], 3.4)
    assert slots() == [Slot(frozenset(cores), CPU_ENVIRONMENT) for cores in ([2, 3], [5, 7], [11, 13])]


@pytest.mark.parametrize(
    ("cores", "workers", "wanted", "count"),
    [
        (2, 100, 0, 2),  # as many as there are cores
        (8, 3.4, 0, 3),  # as many as there is memory for
        (8, 1.9, 0, 2),  # what is sold as 8 GiB shows a little less
        (8, 0.5, 0, 1),  # at least one
        (8, 100, 3, 3),  # no more than asked for
        (8, 100, 20, 8),  # no more than cores
        (1, 100, 5, 1),
        (5, 100, 2, 2),
    ],
)
def test_workers_are_as_many_as_pay(monkeypatch, cores: int, workers: float, wanted: int, count: int):
    cpu(monkeypatch, list(range(10, 10 + cores)), workers)
    found = slots(wanted)
    assert len(found) == count
    # Workers take nothing from each other, and each has its fair share.
    taken = [core for slot in found for core in slot.cores]
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(range(10, 10 + cores))
    assert {len(slot.cores) for slot in found} == {cores // count}


def test_each_gpu_has_a_worker(monkeypatch: pytest.MonkeyPatch):
    plugins(monkeypatch, "jax_cuda13_plugin")
    cpu(monkeypatch, [0, 1], 100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,GPU-abc")
    expected = [Slot(frozenset(), {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in ("2", "5", "GPU-abc")]
    assert slots() == expected
    assert slots(2) == expected[:2]
    assert slots(3) == expected
    assert machine.has_accelerator()


@pytest.mark.parametrize(
    ("wanted", "devices", "parts", "share"),
    [
        (4, 1, ["0", "1", "2", "0"], 0.45),
        (6, 1, ["0", "1", "2"] * 2, 0.45),
        (9, 1, ["0", "1", "2"] * 3, 0.3),
        (3, 2, ["0,1"] * 3, 0.3),
    ],
)
def test_more_workers_than_gpus_share_them_in_turn_with_their_memory(monkeypatch, wanted, devices, parts, share):
    plugins(monkeypatch, "jax_cuda13_plugin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    found = slots(wanted, devices=devices)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found] == parts
    assert {float(slot.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"]) for slot in found} == {share}


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_are_not_used(monkeypatch: pytest.MonkeyPatch, hidden: str):
    plugins(monkeypatch, "jax_cuda12_plugin")
    cpu(monkeypatch, [4], 100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert machine.gpus() == []
    assert slots() == [Slot(frozenset([4]), CPU_ENVIRONMENT)]


@pytest.mark.parametrize("reason", ["no plugin", "told so"])
def test_gpus_that_jax_will_not_use_are_not_counted(monkeypatch: pytest.MonkeyPatch, reason: str):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    if reason == "told so":
        plugins(monkeypatch, "jax_cuda13_plugin")
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    cpu(monkeypatch, [0, 1], 100)
    assert not machine.has_accelerator()
    assert [slot.cores for slot in slots()] == [{0}, {1}]


def test_gpus_are_found_by_their_device_files(monkeypatch: pytest.MonkeyPatch):
    plugins(monkeypatch, "jax_cuda13_plugin")
    there = [Path("/dev/nvidia1"), Path("/dev/nvidia0")]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: there if pattern.startswith("nvidia") else [])
    assert machine.gpus() == ["0", "1"]


def test_a_run_on_several_devices_has_them_together(monkeypatch: pytest.MonkeyPatch):
    plugins(monkeypatch, "jax_cuda13_plugin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,5,7")
    seen = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots(devices=2)]
    assert seen == ["0,1", "2,5"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots(devices=8)] == ["0,1,2,5,7"]
    plugins(monkeypatch)
    cpu(monkeypatch, [0, 1], 1)
    assert slots(devices=4) == [Slot(frozenset([0, 1]), CPU_ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "4"})]


def test_a_tpu_has_one_worker(monkeypatch: pytest.MonkeyPatch):
    plugins(monkeypatch, "libtpu")
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / "accel0"] if pattern.startswith("accel") else [])
    assert slots() == slots(4) == [Slot(frozenset(), {})]
    plugins(monkeypatch)
    cpu(monkeypatch, [0], 1)
    assert slots() == [Slot(frozenset([0]), CPU_ENVIRONMENT)]


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {7, 3}, raising=False)
    assert machine.cores() == [3, 7]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("200000 100000\n", [3, 5]),
        ("150000 100000", [3]),
        ("5000 100000", [3]),
        ("max 100000\n", [3, 5, 8]),
        (None, [3, 5, 8]),
    ],
)
def test_cores_are_no_more_than_the_control_group_fills(monkeypatch, tmp_path: Path, limit: str | None, expected):
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {8, 5, 3}, raising=False)
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit)
    assert machine.cores() == expected


@pytest.mark.parametrize(
    ("memory", "largest", "count"), [(9.2, 6, 1), (15.9, 6, 2), (23, 14, 1), (7.7, 4, 2), (7.4, 4, 1)]
)
def test_workers_fit_into_memory(monkeypatch, memory: float, largest: float, count: int):
    cpu(monkeypatch, list(range(8)), 0)
    monkeypatch.setattr(machine, "memory", lambda: int(memory * 2**30))
    assert len(slots(worker_bytes=int(largest * 2**30))) == count


def test_large_runs_have_fewer_workers(monkeypatch: pytest.MonkeyPatch):
    cpu(monkeypatch, [0, 1, 2, 3], 4)
    assert len(slots()) == len(slots(worker_bytes=WORKER_BYTES // 2)) == 4
    assert [slot.cores for slot in slots(worker_bytes=2 * WORKER_BYTES)] == [{0, 1}, {2, 3}]
    assert len(slots(worker_bytes=100 * WORKER_BYTES)) == 1


@pytest.mark.parametrize(
    ("models", "expected"),
    [("Model: NVIDIA H200", "h200"), ("Model: NVIDIA H100 80GB HBM3", "h100"), ("Model: Tesla T4", "a100")],
)
def test_the_gpu_is_known_by_its_model(monkeypatch, tmp_path: Path, models: str, expected: str):
    plugins(monkeypatch, "jax_cuda13_plugin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    card = tmp_path / "0" / "information"
    card.parent.mkdir()
    card.write_text(models)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [card] if pattern == "*/information" else [])
    assert machine.accelerator() == expected
    assert machine.is_known()
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [])
    assert not machine.is_known()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("v5litepod-8", "v5e"),
        ("v5p-16", "v5p"),
        ("v6e-4", "v6e"),
        ("v4-8", "v4"),
        ("tpu7x-16", "tpu7x"),
        ("v3-8", "v5e"),
        (None, "v5e"),
    ],
)
def test_the_tpu_is_known_by_its_machine(monkeypatch, kind: str | None, expected: str):
    plugins(monkeypatch, "libtpu")
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / "accel0"] if pattern.startswith("accel") else [])
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    if kind:
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", kind)
    assert machine.accelerator() == expected
    assert expected in RATES
    assert machine.is_known() is (kind not in ("v3-8", None))


def test_without_an_accelerator_there_is_none():
    assert machine.accelerator() is None


@pytest.mark.parametrize(
    ("limit", "expected"), [("2147483648\n", 2**31), ("max\n", 2**35), (str(2**60), 2**35), (None, 2**35)]
)
def test_memory_is_that_of_the_control_group_if_it_is_less(monkeypatch, limit: str | None, expected: int):
    def read_text(path: Path, *_: object) -> str:
        if limit is None:
            raise FileNotFoundError(path)
        return limit

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**23}.__getitem__)
    assert machine.memory() == expected
