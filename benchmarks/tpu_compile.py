"""Compiles the TPU kernels with the TPU's own compiler for chips that need not be there, and reads what it says.

    python benchmarks/tpu_compile.py [--study] [--chips v5e v6e] [--json] [--save FILE]

Needs the `libtpu` package and no TPU. For every chip, kernel and shape: the tiles chosen, bytes of VMEM by our
arithmetic and by the compiler, what was allowed and what the chip has, and from the final schedule its length in
instruction bundles (code, not time: loops count once) and the vector registers that it spills to VMEM and fills.

Kernels are the same where their tiles are, whatever the rows and groups: they are compiled once, for the fewest
rows. `--study` compiles the 300m scale of the study only: experts of d_ff, d_ff/4, /16 and /64.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

DUMP = Path(tempfile.mkdtemp(prefix="tpu_compile_"))
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={DUMP} --xla_jf_dump_llo_text=true"
    " --xla_jf_dump_llo_pass_label_regex=final_hlo-static.*|pre-finalize.*",
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from slicedice.kernels.groups import Groups  # noqa: E402
from slicedice.kernels.pallas_tpu import ffn, ffn_backward, gmm, tgmm, tiles  # noqa: E402

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
SHAPES = list(product((256, 832, 2048), (32, 64, 128, 512, 1024), (8, 64, 512, 4096), (1, 8, 64, 512)))
"""D, F, groups and mean rows of a group."""
STUDY = [(832, 3328, 64, 128), (832, 832, 256, 128), (832, 208, 1024, 128), (832, 52, 2048, 256)]
KERNELS = ("forward", "dlhs", "drhs", "ffn", "ffn_backward")


def main() -> None:
    """Compiles, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", action="store_true", help="the study's shapes only")
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", help="a file to write")
    options = parser.parse_args()
    shapes = STUDY if options.study else STUDY + SHAPES
    rows = [row for chip in options.chips for row in compiled(chip, shapes)]
    shutil.rmtree(DUMP, ignore_errors=True)  # it is gone where the last kernel did not compile
    lines, ratios = [], {}
    for chip, kernel in product(options.chips, KERNELS):
        mine = [row for row in rows if (row["chip"], row["kernel"]) == (chip, kernel)]
        good = [row for row in mine if not row["error"]]
        vmem = max((row["vmem_compiler"] for row in good), default=0) / 2**20
        ratios[f"{chip} {kernel}, share that compiles"] = round(len(good) / len(mine), 4)
        ratios[f"{chip} {kernel}, VMEM over the chip's"] = round(vmem / (mine[0]["vmem_chip"] / 2**20), 4)
        lines.append(
            f"{chip:6} {kernel:13} {len(good)} of {len(mine)} compile, for {sum(len(row['covers']) for row in good)} "
            f"shapes; VMEM at most {vmem:.1f} of {mine[0]['vmem_chip'] / 2**20:.0f} MiB; "
            f"{sum(not row['spills'] for row in good)} without spills, most "
            f"{max((row['spills'] for row in good), default=0)}"
        )
    print(json.dumps({"ratios": ratios}) if options.json else "\n".join(lines))
    if options.save:
        about = {
            "date": datetime.date.today().isoformat(),
            "versions": {"python": sys.version.split()[0], **{name: version(name) for name in ("jax", "libtpu")}},
            "command": " ".join(
                ["python benchmarks/tpu_compile.py"]
                + ["--study"] * options.study
                + (["--chips", *options.chips] if options.chips != list(CHIPS) else [])
            ),
            "dtype": "bfloat16",
        }
        columns = [name for name in max(rows, key=len) if name != "covers"]
        lines = ",\n".join(json.dumps([row.get(name) for name in columns] + [len(row["covers"])]) for row in rows)
        head = json.dumps({**about, "columns": [*columns, "shapes_covered"]})
        Path(options.save).write_text(f'{head[:-1]}, "rows": [\n{lines}\n]}}\n')
    if any(row["error"] for row in rows):
        sys.exit("some kernels do not compile")


def compiled(name: str, shapes: list[tuple[int, int, int, int]]) -> list[dict[str, Any]]:
    """A row for every kernel that differs."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[name]).devices[0]
    rows = []
    with jax.default_device(device):
        for kernel in KERNELS:
            distinct: dict[tuple, list[tuple[int, int]]] = {}
            for d, f, groups, mean in shapes:
                distinct.setdefault((d, f, plan(kernel, d, f, groups, mean)), []).append((groups, mean))
            for (d, f, chosen), covers in distinct.items():
                groups, mean = min(covers, key=lambda cover: cover[0] * (d * f + cover[1] * (d + f)))
                begin = time.perf_counter()
                error, figures = None, {}
                try:
                    compile_one(device, kernel, d, f, groups, mean)
                    figures = read_dump(
                        {"ffn": "ffn", "ffn_backward": "ffn_backward", "drhs": "tgmm"}.get(kernel, "gmm")
                    )
                except Exception as caught:
                    error = f"{type(caught).__name__}: {caught}"[:400]
                rows.append(
                    {
                        "chip": name,
                        "kernel": kernel,
                        "D": d,
                        "F": f,
                        "row_tile": chosen.rows,
                        "width_tiles": chosen.widths,
                        "vmem_blocks": chosen.vmem,
                        "vmem_allowed": tiles.vmem_limit(chosen.vmem),
                        "vmem_chip": tiles.chip().vmem,
                        **figures,
                        "seconds": round(time.perf_counter() - begin, 1),
                        "groups": groups,
                        "mean_rows": mean,
                        "error": error,
                        "covers": covers,
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def plan(kernel: str, d: int, f: int, groups: int, mean: int) -> tiles.Plan:
    """The tiles of a kernel, in bfloat16."""
    m, dtype = groups * mean, jnp.dtype(jnp.bfloat16)
    module = {
        name: sys.modules[f"slicedice.kernels.pallas_tpu.{name}"] for name in ("gmm", "tgmm", "ffn", "ffn_backward")
    }
    if kernel == "ffn":
        return module["ffn"].plan((m, d, f), groups, (dtype,) * 4)
    if kernel == "ffn_backward":
        return module["ffn_backward"].plan((m, d, f), groups, (dtype,) * 5)
    flipped = tiles.flips(d, f)
    if kernel == "drhs":
        return module["tgmm"].plan((m, f, d) if flipped else (m, d, f), groups, (dtype,) * 3)
    k, n, transpose = (d, f, flipped) if kernel == "forward" else (f, d, not flipped)
    return module["gmm"].plan((m, k, n), groups, (dtype,) * 3, transpose)


def compile_one(device: Any, kernel: str, d: int, f: int, groups: int, mean: int) -> None:
    """Compiles a kernel for a device that need not be there."""
    shutil.rmtree(DUMP, ignore_errors=True)
    m, dtype, sharding = groups * mean, jnp.bfloat16, jax.sharding.SingleDeviceSharding(device)
    wide, narrow, sizes = ((m, d), dtype), ((m, f), dtype), ((groups,), jnp.int32)
    matrix, down = ((groups, d, f), dtype), ((groups, f, d), dtype)
    function, arrays = {
        "forward": (
            lambda x, w, sizes: gmm(x, w, Groups(sizes), transpose_rhs=False, dtype=dtype),
            (wide, matrix, sizes),
        ),
        "dlhs": (
            lambda x, w, sizes: gmm(x, w, Groups(sizes), transpose_rhs=True, dtype=dtype),
            (narrow, matrix, sizes),
        ),
        "drhs": (lambda x, y, sizes: tgmm(x, y, Groups(sizes), dtype=dtype), (wide, narrow, sizes)),
        "ffn": (lambda x, g, u, o, sizes: ffn(x, g, u, o, Groups(sizes)), (wide, matrix, matrix, down, sizes)),
        "ffn_backward": (
            lambda x, g, u, o, sizes, y: ffn_backward(x, g, u, o, Groups(sizes), (), y),
            (wide, matrix, matrix, down, sizes, wide),
        ),
    }[kernel]
    structs = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in arrays]
    jax.jit(function).lower(*structs).compile()


def read_dump(name: str) -> dict[str, int]:
    """What the compiler wrote about the kernel of this name: VMEM in bytes, bundles, spills and fills."""
    files = sorted(path for path in DUMP.iterdir() if re.search(rf"-{name}(\.\d+)?-\d+-", path.name))
    allocations = next(path for path in files if "pre-finalize" in path.name).read_text()
    sizes = re.findall(r"space=vmem, size = (0x[0-9a-f]+)", allocations)
    lines = next(path for path in files if "final_hlo-static" in path.name).read_text().splitlines()
    columns = [column.strip() for column in lines[1].split(",")]
    bundles = [dict(zip(columns, map(int, line.split()), strict=True)) for line in lines[4:] if line.strip()]
    return {
        "vmem_compiler": sum(int(size, 16) for size in sizes),
        "bundles": len(bundles),
        "spills": sum(bundle["VSTORE:SPILL"] for bundle in bundles),
        "fills": sum(bundle["VLOAD:FILL"] for bundle in bundles),
    }


if __name__ == "__main__":
    main()
