"""What this machine has, found without importing JAX: the parent of a sweep never touches a device."""

import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path

WORKER_BYTES = 4 * 2**30
"""Memory to set aside for one worker on CPU, if its runs do not take more."""

GPU_SHARE = 0.9
"""Of a GPU's memory, what several workers take together; the rest is what each needs beside its arrays."""

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells what this process may use of the machine (control groups, version 2)."""

# What a worker on CPU is started with. glibc hands big blocks back to the kernel, which then clears every page again
# at the next step; so do arenas that threads have of their own. Keeping blocks, in huge pages and one arena, halves the
# time of a step here. Other systems ignore the variable. Where libtpu is installed, for its compiler alone, JAX would
# look for a TPU and say at length that there is none.
CPU_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=8589934592:glibc.malloc.arena_max=1",
    "JAX_PLATFORMS": "cpu",
}


@dataclass(frozen=True)
class Slot:
    """Where one worker runs: its CPU cores (empty: any) and variables of its environment."""

    cores: frozenset[int]
    environment: dict[str, str]


def gpus() -> list[str]:
    """Indices of NVIDIA GPUs that JAX could use, from their device files and its plugin."""
    if not any(importlib.util.find_spec(f"jax_cuda{major}_plugin") for major in (12, 13)):
        return []
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return [index for index in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if index not in ("", "-1")]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def has_tpu() -> bool:
    """Whether a TPU is attached and JAX could use it."""
    attached = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return attached and importlib.util.find_spec("libtpu") is not None


def has_accelerator() -> bool:
    """Whether JAX would find a GPU or TPU here, unless JAX_PLATFORMS says to use the CPU."""
    return os.environ.get("JAX_PLATFORMS", "") != "cpu" and bool(gpus() or has_tpu())


def settle_platform() -> None:
    """Tells JAX, before it is imported, to use the CPU where there is nothing else.

    Where libtpu is installed, for its compiler alone, it would look for a TPU and say at length that there is none.
    """
    if not has_accelerator():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def accelerator() -> str | None:
    """What accelerator is here, by the names of `slicedice.cost.RATES`; the least of its kind if it is another."""
    if not has_accelerator():
        return None
    if gpus():
        return next((name for name in ("h200", "h100", "a100") if name in _cards()), "a100")
    return _tpu() or "v5e"


def is_known() -> bool:
    """Whether the machine says which accelerator it has: not every container or TPU machine does."""
    return bool(_cards() if gpus() else _tpu())


def _cards() -> str:
    return " ".join(card.read_text() for card in Path("/proc/driver/nvidia/gpus").glob("*/information")).lower()


def _tpu() -> str:
    """Of the TPU, our name by what Cloud TPU machines say, as v5litepod-8 or tpu7x-16; "" if they do not."""
    kind = os.environ.get("TPU_ACCELERATOR_TYPE", "").replace("litepod", "e")
    return next((name for name in ("v4", "v5e", "v5p", "v6e", "tpu7x") if kind.startswith(name)), "")


def cores() -> list[int]:
    """CPU cores that this process may use: no more than its control group's share of time fills."""
    if hasattr(os, "sched_getaffinity"):
        available = sorted(os.sched_getaffinity(0))
    else:
        available = list(range(os.cpu_count() or 1))
    quota, _, period = _limit("cpu.max").partition(" ")
    return available[: max(1, int(quota) // int(period))] if quota.isdecimal() else available


def threads() -> int:
    """How many threads XLA has on CPU in this process: one for each core that it sees, or device that it simulates."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told, devices = (os.environ.get(name, "") for name in ("NPROC", "JAX_NUM_CPU_DEVICES"))
    return max(int(told) if told.isdecimal() else seen, int(devices) if devices.isdecimal() else 1)


def slots(max_concurrent: int = 0, worker_bytes: int = 0, devices: int = 1) -> list[Slot]:
    """Places for workers: a GPU each or several to one, one for a TPU, and on CPU as many as cores and memory allow.

    On CPU workers share the cores out evenly. Their number never depends on how many runs are left: a run that the same
    command takes up again meets the same threads, without which its results are not bitwise the same.

    Args:
      max_concurrent: how many workers, on CPU if there are cores for them; 0 for as many as fit. A TPU has one. Where
        they are more than GPUs, each is taken by several in turn, which share its memory evenly.
      worker_bytes: memory that a worker's largest run takes of a device.
      devices: how many a run trains on; a CPU is taken for as many.
    """
    if has_accelerator():
        parts = [gpus()[i : i + devices] for i in range(0, len(gpus()), devices)]
        whole = [part for part in parts if len(part) == devices] or parts[:1]  # too few: the worker says so
        if not whole:
            return [Slot(frozenset(), {})]
        count = max_concurrent or len(whole)
        sharing = math.ceil(count / len(whole))
        memory_share = {} if sharing == 1 else {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{GPU_SHARE / sharing:.3f}"}
        visible = (",".join(whole[i % len(whole)]) for i in range(count))
        return [Slot(frozenset(), {"CUDA_VISIBLE_DEVICES": part, **memory_share}) for part in visible]
    available = cores()
    fitting = memory() / max(worker_bytes * devices, WORKER_BYTES)
    by_memory = max(1, int(fitting + 0.125))  # what is sold as 8 GiB shows a little less
    count = min(max_concurrent or by_memory, len(available))
    share = len(available) // count
    environment = CPU_ENVIRONMENT | ({"JAX_NUM_CPU_DEVICES": str(devices)} if devices > 1 else {})
    return [Slot(frozenset(available[i * share : (i + 1) * share]), environment) for i in range(count)]


def memory() -> int:
    """Bytes of memory of this machine, or of this process's control group if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit("memory.max")
    return min(total, int(limit)) if limit.isdecimal() else total


def _limit(name: str) -> str:
    try:
        return (CONTROL_GROUP / name).read_text().strip()
    except OSError:
        return ""
