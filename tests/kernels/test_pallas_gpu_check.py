"""Whether the GPU kernels may be used: the check at first use, how it fails, and where its outcome is kept."""

import contextlib
import json
import logging
import re
import subprocess
from types import SimpleNamespace

import jax
import pytest

from slicedice.kernels import pallas_gpu, ragged_dot
from slicedice.kernels.pallas_gpu import check, first_use
from tests.kernels.contract import kept

WRONG = subprocess.CalledProcessError(1, "check", stderr="Traceback\nAssertionError: tgmm, group 3")


class Runs:
    """In place of `subprocess.run`, on a machine with a GPU: counts, and ends as it is told."""

    def __init__(self):
        self.count, self.outcome = 0, None

    def __call__(self, *_, **__):
        self.count += 1
        if self.outcome:
            raise self.outcome


@pytest.fixture
def runs(monkeypatch, tmp_path) -> Runs:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    client = SimpleNamespace(platform_version="PJRT C API\ncuda 13000")
    gpu = SimpleNamespace(compute_capability="9.0", device_kind="NVIDIA H100", client=client)
    monkeypatch.setattr(first_use, "jax", SimpleNamespace(devices=lambda: [gpu], default_backend=lambda: "gpu"))
    runs = Runs()
    monkeypatch.setattr(subprocess, "run", runs)
    return runs


def available() -> bool:
    """As in a new process."""
    first_use.passed.cache_clear()
    return check.available()


@pytest.fixture(autouse=True)
def forgetful():
    yield
    first_use.passed.cache_clear()


def test_not_available_without_a_gpu(caplog):
    if jax.default_backend() == "gpu":
        pytest.skip("there is one")
    with caplog.at_level(logging.INFO):
        assert not available()
    assert "compute capability 9.0" in caplog.text


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (None, "passed its check on NVIDIA H100"),
        (WRONG, "tgmm, group 3"),
        (subprocess.CalledProcessError(-11, "check", stderr=""), "exit status -11"),
        (subprocess.TimeoutExpired("check", 1), "did not come to an end"),
        (OSError("no such file"), "could not be started: no such file"),
    ],
)
def test_available_says_what_failed(outcome, message: str, runs: Runs, caplog):
    runs.outcome = outcome
    with caplog.at_level(logging.INFO):
        assert available() == (outcome is None)
    assert message in caplog.text
    assert caplog.records[-1].levelno == (logging.INFO if outcome is None else logging.WARNING)


def test_what_went_wrong_in_a_compiled_function_is_said(monkeypatch, tmp_path):
    (tmp_path / "checked.py").write_text("import jax\n\ndef check():\n    jax.jit(lambda x: {}['layout'])(1.0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert first_use._failure("checked") == ("failed: KeyError: 'layout'", False)


def test_devices_of_a_kind_are_checked_once(runs: Runs, tmp_path, monkeypatch, caplog):
    assert available()
    assert available()
    assert runs.count == 1
    (file,) = kept(tmp_path)
    # Anew for another device, driver, version of JAX, and code of the kernels.
    gpu = first_use.jax.devices()[0]
    source = tmp_path / "kernel.py"
    source.write_text("one")
    driver = tmp_path / "version"
    driver.write_text("580")
    for changed in (
        lambda: monkeypatch.setattr(gpu, "device_kind", "NVIDIA H200"),
        lambda: monkeypatch.setattr(gpu.client, "platform_version", "cuda 13010"),
        lambda: monkeypatch.setattr(first_use, "DRIVER", driver),
        lambda: driver.write_text("581"),
        lambda: monkeypatch.setattr(first_use, "version", lambda package: f"99 of {package}"),
        lambda: monkeypatch.setattr(check, "SOURCES", (*check.SOURCES, source)),
        lambda: source.write_text("another"),
    ):
        before = runs.count
        changed()
        assert available()
        assert available()
        assert runs.count == before + 1
    assert file.exists()


@pytest.mark.parametrize(
    ("outcome", "again"),
    [
        (WRONG, False),
        (subprocess.TimeoutExpired("check", 1), False),
        (subprocess.CalledProcessError(1, "check", stderr="RESOURCE_EXHAUSTED: Out of memory"), True),
        (subprocess.CalledProcessError(-11, "check", stderr=""), True),
        (OSError("no such file"), True),
    ],
)
def test_failures_that_may_pass_are_checked_again(outcome, again: bool, runs: Runs, tmp_path, caplog):
    runs.outcome = outcome
    assert not available()
    runs.outcome = None
    assert available() == again
    if not again:
        (file,) = kept(tmp_path)
        assert f"known from {file}; without that file it is checked again" in caplog.text
        file.unlink()
        assert available()


def test_who_waits_for_another_process_takes_what_it_found(runs: Runs, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def alone(path):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"failure": ""}))
        yield

    monkeypatch.setattr(first_use.cache, "alone", alone)
    assert available()
    assert runs.count == 0


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"failure": 1}', "\udcff"])
def test_a_damaged_file_is_checked_and_written_anew(damage: str, runs: Runs, tmp_path):
    assert available()
    (file,) = kept(tmp_path)
    file.write_bytes(damage.encode(errors="surrogateescape"))
    assert available()
    assert runs.count == 2
    assert json.loads(file.read_text()) == {"failure": ""}
    assert kept(tmp_path) == [file]


def test_without_a_folder_every_process_checks(runs: Runs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert available()
    assert available()
    assert runs.count == 2
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(first_use.Path, "home", home)
    assert available()
    assert runs.count == 3


@pytest.mark.parametrize("broken", ["", "gmm", "tgmm", "ffn", "ffn gradients"])
def test_check_tells_right_from_wrong(broken: str, monkeypatch):
    """With XLA's own products in place of the kernels, as they are and with one entry off."""

    def spoiled(name: str, out: jax.Array) -> jax.Array:
        return out.at[-30 if out.ndim == 2 else 1].mul(1.5) if name == broken else out

    def gmm(x, w, groups, **how):
        return spoiled("gmm", ragged_dot.gmm(groups.select(x), w, groups, **how))

    def tgmm(x, y, groups, **how):
        return spoiled("tgmm", ragged_dot.tgmm(groups.select(x), groups.select(y), groups, **how))

    def ffn(x, gate, up, down, groups):
        return spoiled("ffn", ragged_dot.ffn(groups.select(x), gate, up, down, groups)[0]), ()

    def ffn_backward(x, gate, up, down, groups, saved, dy):
        x, dy = groups.select(x), groups.select(dy)
        saved = ragged_dot.ffn(x, gate, up, down, groups)[1]
        out = ragged_dot.ffn_backward(x, gate, up, down, groups, saved, dy)
        return *out[:-1], spoiled("ffn gradients", out[-1])

    for function in (gmm, tgmm, ffn, ffn_backward):
        monkeypatch.setattr(pallas_gpu, function.__name__, function)
    if broken:
        with pytest.raises(AssertionError, match=re.escape(f"['{broken}']")):
            check.check(0)
    else:
        check.check(0)
