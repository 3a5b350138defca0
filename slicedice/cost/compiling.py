"""A program's step through the real compiler: `python -m slicedice.cost.compiling`, a child process of `plan`.

Reads requests as lines of JSON on standard input and answers each with one; whoever asks need not import JAX. The
compiler for TPUs is in the package libtpu, and takes no TPU.
"""

import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NO_COMPILER = "no compiler"
"""The answer where libtpu is not installed."""


def main() -> int:
    """Answers requests until there are no more."""
    # The compiler is asked for chips that are not here, by several processes at once.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)
    return 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the compiler says of the step of `spec` under `execution` on `topology`."""
    import jax

    from slicedice.cost.hlo import collectives
    from slicedice.spec import Execution, from_json
    from slicedice.training import Program

    began = time.monotonic()
    if importlib.util.find_spec("libtpu") is None:
        return {"error": NO_COMPILER}
    try:
        devices = _devices(request["topology"], request["slices"])
    except Exception as error:
        return {"error": f"the compiler knows no {request['topology']}: {error}"[:2000]}
    folder = tempfile.TemporaryDirectory()
    try:
        with jax.default_device(devices[0]):
            program = Program(from_json(request["spec"]), Execution(**request["execution"]), devices)
            compiled = program.lower().compile(compiler_options={"xla_dump_to": folder.name})
            reserved = _reserved(Path(folder.name))
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            return {"error": f"{type(error).__name__}: {error}"[:2000], "seconds": time.monotonic() - began}
        return {"fits": False, "bytes": _wanted(str(error)), "seconds": time.monotonic() - began}
    finally:
        folder.cleanup()
    memory = compiled.memory_analysis()
    assert memory is not None
    moved = collectives(compiled.as_text() or "")
    return {
        "fits": True,
        "bytes": reserved,
        "state_bytes": memory.argument_size_in_bytes,
        "traffic": sum(one.received for one in moved),
        "collectives": [one._asdict() for one in moved],
        "seconds": time.monotonic() - began,
    }


def _devices(topology: str, slices: int) -> list[Any]:
    from jax.experimental import topologies

    several: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4:"):  # whose two cores are one device, as on the machines themselves
        several["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **several).devices


def _reserved(folder: Path) -> int:
    """Bytes of a device's memory that a program takes, of what the compiler wrote into `folder`.

    What `Compiled.memory_analysis` calls temporary counts memory beside the cores too, once for each use of it, up to
    40 % over this; what it calls the peak leaves out gaps between buffers.

    Raises:
      ValueError: the report is not there, or says it in other words.
    """
    for report in folder.glob("*memory-usage-report.txt"):
        if found := re.search(r"Memory Space: default \(color=0\)\s+Total bytes: (\d+)", report.read_text()):
            return int(found[1])
    raise ValueError("The compiler reports its use of memory in a way that is not known here.")


def _wanted(message: str) -> int | None:
    """How many bytes the compiler would have taken, where it says so."""
    found = re.search(r"\(([\d.]+)([KMG])\) exceeds|Used ([\d.]+)([KMG]) of", message)
    if not found:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * 2 ** {"K": 10, "M": 20, "G": 30}[unit])


if __name__ == "__main__":
    sys.exit(main())
