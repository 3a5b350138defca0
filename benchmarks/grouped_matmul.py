"""The grouped matmul and the expert FFN against a dense product, XLA's, tokamax's, and what the hardware allows.

    python benchmarks/grouped_matmul.py [--quick] [--only PATTERN] [--json] [--save]

Every figure is a ratio taken in one process: the competitors take turns, and the median over turns of the ratio of
neighbours counts. Shapes are D (width), F (expert width), G (groups) and mean rows a group; group sizes are equal,
drawn by Zipf's law, or all rows are one group's. Directions: the product, its gradients `dlhs` and `drhs`, and the
expert FFN forward (`ffn`) and with its backward pass (`ffn_grad`). Against:

- dense: one product of the same FLOPs, `[M, D] x [D, F]` and so on; for the FFN, one dense SwiGLU
- ragged_dot: `jax.lax.ragged_dot` itself, for the FFN three of them; on CPU, where it multiplies every row with every
  matrix, for equal groups alone and only where that takes under RAGGED_SECONDS
- tokamax: its `ragged_dot`, where it is installed and the device is not a CPU
- roofline: the larger of operations over the rate of a large dense product and bytes over the rate of a large copy,
  both measured at the start; a share of 1 is perfect, and arrays that stay in a cache can pass it

On CPU the process starts anew with the allocator's settings that a sweep's worker has, without which large results are
cleared page by page by the kernel at every call.

`--save` writes benchmarks/results/grouped_matmul-DEVICE.json after every shape, and keeps what calls of other options
measured of other shapes, so that a long table can be made in parts; `python benchmarks/grouped_matmul_chart.py` draws
and sums it up. What a competitor cannot do is left out, with its error in the row. Shapes that take more time or memory
than `--most_seconds` and `--most_gib` allow are left out and named: a larger device wants these raised.
"""

import argparse
import datetime
import fnmatch
import functools
import importlib.util
import itertools
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slicedice.kernels import choose, expert_ffn, grouped_matmul
from slicedice.machine import CPU_ENVIRONMENT, has_accelerator
from slicedice.provenance import provenance

WIDTHS, EXPERT_WIDTHS = (256, 832, 2048), (32, 64, 128, 512, 1024)
GROUPS, ROWS = (8, 64, 512, 4096), (1, 8, 64, 512)
STUDY = ((832, 52, 512, 64), (832, 52, 4096, 8))  # the finest experts of the study's 300m, d_ff / 64
SKEWS = ("equal", "zipf", "one")
DIRECTIONS = ("forward", "dlhs", "drhs", "ffn", "ffn_grad")
RESULTS = Path(__file__).parent / "results"
QUICK = ((832, 52, 512, 64), (832, 512, 64, 64))  # one of the study's, and one that fills any device
TURNS = 5
RAGGED_SECONDS = 0.3


class Shape(NamedTuple):
    """D, F, G and mean rows a group."""

    d: int
    f: int
    g: int
    rows: int

    @property
    def m(self) -> int:
        """All rows."""
        return self.g * self.rows

    def __str__(self) -> str:
        return f"D{self.d}-F{self.f}-G{self.g}-r{self.rows}"


class Rates(NamedTuple):
    """What this device reaches: operations a second in a large dense product, bytes a second in a large copy."""

    operations: float
    bytes: float


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two shapes alone")
    parser.add_argument("--only", default="*", help="shapes whose name matches, as in D832-F64-G512-r8")
    parser.add_argument("--implementation", default="", help="ours by name; by platform if not given")
    parser.add_argument("--most_seconds", type=float, default=0.1, help="of the largest dense product to measure")
    parser.add_argument("--most_gib", type=float, default=6.0, help="of the largest arrays to measure")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if not has_accelerator() and not os.environ.items() >= CPU_ENVIRONMENT.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | CPU_ENVIRONMENT)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    implementation = choose(options.implementation)
    rates = measured_rates(dtype)
    where = provenance("") | {"implementation": implementation, "dtype": np.dtype(dtype).name}
    rows: list[dict[str, Any]] = []
    measured: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        **{key: where[key] for key in ("device", "python", "packages", "implementation", "dtype")},
        "rates": rates._asdict(),
        "groups_4096_over_512": many_groups(dtype, implementation),
        "skipped": {},
    }
    shapes = QUICK if options.quick else [*itertools.product(WIDTHS, EXPERT_WIDTHS, GROUPS, ROWS), *STUDY]
    for shape in itertools.starmap(Shape, shapes):
        if not fnmatch.fnmatch(str(shape), options.only):
            continue
        reason = too_large(shape, rates, options, np.dtype(dtype).itemsize)
        if reason:
            measured["skipped"][str(shape)] = reason
        for direction in () if reason else DIRECTIONS:
            rows += measure(shape, direction, dtype, rates, implementation)
            if not options.json:
                print("\n".join(line(row) for row in rows[-len(SKEWS) :]), flush=True)
        if options.save:
            save(measured, rows)
    if options.json:
        print(json.dumps(measured | {"rows": rows, "ratios": ratios_of(measured, rows)}))
    else:
        print(json.dumps({key: value for key, value in measured.items() if key != "skipped"}, indent=1))
        print(f"{len(measured['skipped'])} shapes left out as too large")


RATIOS = {
    "over_dense": "over dense",
    "roofline_share": "of roofline",
    "ragged_dot_over_ours": "ragged_dot over ours",
    "tokamax_over_ours": "tokamax over ours",
}


def ratios_of(measured: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """The figures of equal groups, and what many groups cost, each by a name."""
    ratios = {f"4096 groups over 512, {name}": value for name, value in measured["groups_4096_over_512"].items()}
    for row in rows:
        if row["groups"] == "equal":
            ratios |= {f"{row['shape']} {row['direction']} {RATIOS[key]}": row[key] for key in RATIOS if row.get(key)}
    return ratios


def save(measured: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes the rows, a line each, into the device's file, together with what other calls measured of other shapes.

    What a call was, and on what, stands under "measured"; each row names its place there.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"grouped_matmul-{re.sub(r'[^A-Za-z0-9]+', '-', measured['device']).strip('-')}.json"
    before = json.loads(path.read_text()) if path.exists() else {"measured": [], "rows": []}
    calls = [call for call in before["measured"] if call["command"] != measured["command"]] + [measured]
    kept = [row | {"measured": before["measured"][row["measured"]]} for row in before["rows"]]
    by_name = {
        (row["shape"], row["groups"], row["direction"], row["measured"]["implementation"]): row
        for row in (*kept, *(row | {"measured": measured} for row in rows))
        if row["measured"] in calls
    }
    lines = [json.dumps(row | {"measured": calls.index(row["measured"])}) for row in by_name.values()]
    path.write_text('{"measured": ' + json.dumps(calls, indent=1) + ',\n"rows": [\n' + ",\n".join(lines) + "\n]}\n")


def too_large(shape: Shape, rates: Rates, options: argparse.Namespace, size: int) -> str:
    """Why a shape is not measured, or nothing."""
    seconds = 2 * shape.m * shape.d * shape.f / rates.operations
    # Matrices, their gradients, rows and their gradients, of three products.
    gib = size * 2 * 3 * (shape.g * shape.d * shape.f + shape.m * (shape.d + shape.f)) / 2**30
    if seconds > options.most_seconds:
        return f"a dense product of as many operations takes {seconds:.1f} s here"
    return f"its arrays take {gib:.1f} GiB" if gib > options.most_gib else ""


def measure(shape: Shape, direction: str, dtype: Any, rates: Rates, implementation: str) -> list[dict[str, Any]]:
    """A row of figures for each skew of group sizes."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def normal(*axes):
        return jax.random.normal(next(keys), axes, dtype)

    d, f, g, m = shape.d, shape.f, shape.g, shape.m
    products = {"forward": 1, "dlhs": 1, "drhs": 1, "ffn": 3, "ffn_grad": 9}[direction]
    if direction.startswith("ffn"):
        rows, matrices = (normal(m, d),), (normal(g, d, f), normal(g, d, f), normal(g, f, d))
    else:
        # What the product reads of rows and of matrices, and gives back.
        rows, matrices = {
            "forward": ((normal(m, d),), (normal(g, d, f),)),
            "dlhs": ((normal(m, f),), (normal(g, d, f),)),
            "drhs": ((normal(m, d), normal(m, f)), ()),
        }[direction]
    operations = products * 2 * m * d * f
    on_cpu = jax.default_backend() == "cpu"
    competitors = {"ours": ours(direction, implementation, g)}
    if not on_cpu or operations * g / rates.operations <= RAGGED_SECONDS:
        competitors["ragged_dot"] = library(jax.lax.ragged_dot, direction, g)
    if not on_cpu and importlib.util.find_spec("tokamax"):
        import tokamax  # pyright: ignore[reportMissingImports] optional

        competitors["tokamax"] = library(tokamax.ragged_dot, direction, g)
    inputs = (*rows, *matrices, sizes_of("equal", shape))
    dense_inputs = (*rows, *(x[0] for x in matrices))
    timers, errors = {"dense": repeated(dense(direction), dense_inputs)}, {}
    for name, function in competitors.items():
        try:
            timers[name] = repeated(function, inputs)
        except Exception as error:  # whatever a library raises, the others are still worth measuring
            errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    if "ours" in errors:
        return [{"shape": str(shape), "groups": skew, "direction": direction, "errors": errors} for skew in SKEWS]
    result = []
    for skew in SKEWS:
        if on_cpu and skew != "equal":
            timers.pop("ragged_dot", None)
        sizes = sizes_of(skew, shape)
        turns = in_turns(timers, dict.fromkeys(timers, (*rows, *matrices, sizes)) | {"dense": dense_inputs})
        limit = roofline(direction, shape, int((sizes > 0).sum()), operations, np.dtype(dtype).itemsize, rates)
        result.append(
            {
                "shape": str(shape),
                "groups": skew,
                "direction": direction,
                "milliseconds": round(1e3 * statistics.median(turn["ours"] for turn in turns), 4),
                "over_dense": ratio(turns, "ours", "dense"),
                "ragged_dot_over_ours": ratio(turns, "ragged_dot", "ours"),
                "tokamax_over_ours": ratio(turns, "tokamax", "ours"),
                "roofline_share": round(statistics.median(limit / turn["ours"] for turn in turns), 3),
                **({"errors": errors} if errors else {}),
            }
        )
    return result


def many_groups(dtype: Any, implementation: str) -> dict[str, float | None]:
    """Time with 4,096 groups, one in eight of them with rows, over that with 512 groups of the same rows.

    Rows and matrices read are the same; D is 832, F 64, eight rows a group.
    """
    few, many = Shape(832, 64, 512, 8), Shape(832, 64, 4096, 1)
    keys = jax.random.split(jax.random.key(0), 3)
    lhs, grad = (jax.random.normal(key, (few.m, width), dtype) for key, width in zip(keys, (832, 64), strict=False))
    matrices = jax.random.normal(keys[2], (many.g, 832, 64), dtype)
    sizes = jnp.full(few.g, 8, jnp.int32)
    spread = jnp.zeros(many.g, jnp.int32).at[::8].set(sizes)
    result = {}
    for direction, rows in (("forward", lhs), ("dlhs", grad)):
        function = ours(direction, implementation, 0)
        arguments = {"few": (rows, matrices[::8], sizes), "many": (rows, matrices, spread)}
        timers = {name: repeated(function, inputs) for name, inputs in arguments.items()}
        result[direction] = ratio(in_turns(timers, arguments), "many", "few")
    return result


def sizes_of(skew: str, shape: Shape) -> jax.Array:
    """Group sizes that sum to all rows."""
    rng = np.random.default_rng(0)
    if skew == "equal":
        return jnp.full(shape.g, shape.rows, jnp.int32)
    if skew == "one":
        return jnp.zeros(shape.g, jnp.int32).at[shape.g // 2].set(shape.m)
    weights = rng.permutation(1.0 / np.arange(1, shape.g + 1))
    return jnp.asarray(rng.multinomial(shape.m, weights / weights.sum()), jnp.int32)


def ours(direction: str, implementation: str, groups: int) -> Callable[..., Any]:
    """A direction of our operation, by an implementation; arguments are rows, matrices and sizes."""

    def product(lhs, rhs, sizes):
        return grouped_matmul(lhs, rhs, sizes, implementation=implementation)

    def ffn(rows, gate, up, down, sizes):
        return expert_ffn(rows, gate, up, down, sizes, implementation=implementation)

    return directions(product, ffn, groups)[direction]


def library(ragged_dot: Callable[..., Any], direction: str, groups: int) -> Callable[..., Any]:
    """The same out of a library's `ragged_dot`."""

    def ffn(rows, gate, up, down, sizes):
        hidden = jax.nn.silu(ragged_dot(rows, gate, sizes)) * ragged_dot(rows, up, sizes)
        return ragged_dot(hidden, down, sizes)

    return directions(ragged_dot, ffn, groups)[direction]


def dense(direction: str) -> Callable[..., Any]:
    """One matrix for all rows."""

    def product(lhs, rhs, sizes=None):
        return lhs @ rhs

    def ffn(rows, gate, up, down, sizes=None):
        return (jax.nn.silu(rows @ gate) * (rows @ up)) @ down

    functions = directions(product, ffn, 0)
    return lambda *x: functions[direction](*x, None)


def directions(product, ffn, groups: int) -> dict[str, Callable[..., Any]]:
    """The gradients by themselves: what else a pull-back computes is removed by XLA as nobody reads it."""

    def dlhs(grad, rhs, sizes):
        rows = jax.ShapeDtypeStruct((grad.shape[0], rhs.shape[-2]), grad.dtype)
        zeros = jnp.zeros(rows.shape, rows.dtype)
        return jax.vjp(lambda lhs: product(lhs, rhs, sizes), zeros)[1](grad)[0]

    def drhs(lhs, grad, sizes):
        shape = (lhs.shape[1], grad.shape[1])
        zeros = jnp.zeros((groups, *shape) if groups else shape, lhs.dtype)
        return jax.vjp(lambda rhs: product(lhs, rhs, sizes), zeros)[1](grad)[0]

    def ffn_grad(rows, gate, up, down, sizes):
        out, pull = jax.vjp(lambda *x: ffn(*x, sizes), rows, gate, up, down)
        return out, pull(rows)

    return {"forward": product, "dlhs": dlhs, "drhs": drhs, "ffn": ffn, "ffn_grad": ffn_grad}


def roofline(direction: str, shape: Shape, filled: int, operations: float, size: int, rates: Rates) -> float:
    """Seconds that the measured rates allow: every operand read once, every result written once."""
    d, f, m = shape.d, shape.f, shape.m
    read, written = filled * d * f, shape.g * d * f  # matrices of groups with rows; gradients of all
    values = {
        "forward": m * (d + f) + read,
        "dlhs": m * (d + f) + read,
        "drhs": m * (d + f) + written,
        "ffn": m * 2 * d + 3 * read,
        "ffn_grad": m * 5 * d + 6 * read + 3 * written,  # forward; then rows, cotangent, matrices and all gradients
    }[direction]
    return max(operations / rates.operations, values * size / rates.bytes)


def chained(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` some number of times (the first argument). A barrier makes each call's arguments depend on the call
    before, so that none is left out."""

    def program(calls, *arguments):
        def body(_, carry):
            arguments, _ = carry
            return jax.lax.optimization_barrier((arguments, function(*arguments)))

        first = jax.lax.optimization_barrier((arguments, function(*arguments)))
        return jax.lax.fori_loop(1, calls, body, first)[1]

    return program


def repeated(function: Callable[..., Any], inputs: tuple[jax.Array, ...]) -> Callable[..., float]:
    """A function that times `function`: as many calls, one after another inside one program, as take 2 ms or more.

    Small products are otherwise lost in what it costs to start a program.
    """

    program = jax.jit(chained(function))

    def seconds(calls: int, *arguments) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(program(calls, *arguments))
        return (time.perf_counter() - begin) / calls

    seconds(1, *inputs)  # compiles
    calls = int(max(1, min(200, 2e-3 / seconds(1, *inputs))))
    if calls > 1:
        seconds(calls, *inputs)
    return functools.partial(seconds, calls)


def in_turns(functions: dict[str, Callable[..., float]], arguments: dict[str, tuple]) -> list[dict[str, float]]:
    """Seconds of each function, one after another, a few times: fewer where a turn takes long."""
    turns, begin = [], time.perf_counter()
    while len(turns) < TURNS and (len(turns) < 2 or time.perf_counter() - begin < 3.0):
        turns.append({name: function(*arguments[name]) for name, function in functions.items()})
    return turns


def ratio(turns: list[dict[str, float]], one: str, other: str) -> float | None:
    """Median of the ratios of neighbours; None where one of them was not measured."""
    if not turns[0].keys() >= {one, other}:
        return None
    return round(statistics.median(turn[one] / turn[other] for turn in turns), 3)


def measured_rates(dtype: Any) -> Rates:
    """Of a large square product and of a large copy, a few of each in one program."""
    n, length = (2048, 2**26) if jax.default_backend() == "cpu" else (8192, 2**30)
    square, long = jnp.ones((n, n), dtype), jnp.ones(length, dtype)
    product, copy = jax.jit(chained(lambda x: x @ x)), jax.jit(chained(lambda x: x + jnp.ones((), dtype)))

    def seconds(function, x) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(function(8, x))
        return (time.perf_counter() - begin) / 8

    best = [min(seconds(function, x) for _ in range(TURNS)) for function, x in ((product, square), (copy, long))]
    return Rates(2 * n**3 / best[0], 2 * long.nbytes / best[1])


def line(row: dict[str, Any]) -> str:
    """A row, to read."""
    if "milliseconds" not in row:
        return f"{row['shape']:>20} {row['groups']:>5} {row['direction']:>8} {row['errors']['ours']}"
    others = "".join(
        f"  {name} {row[f'{name}_over_ours']:.3g}x" for name in ("ragged_dot", "tokamax") if row[f"{name}_over_ours"]
    )
    return (
        f"{row['shape']:>20} {row['groups']:>5} {row['direction']:>8} {row['milliseconds']:>10.3f} ms"
        f"  {row['over_dense']:.2f} of dense  {row['roofline_share']:.0%} of roofline{others}"
    )


if __name__ == "__main__":
    main()
