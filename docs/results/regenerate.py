"""Makes this folder, and what the README shows of it: `python docs/results/regenerate.py --store FOLDER`.

Trains what the store lacks of the `paper` grid at `nano`, reports it, and copies tables, claims and figures. The pages
are written from these, never by hand.
"""

import argparse
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet

from slicedice import sweep
from slicedice.store import Store

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
SHOWN = "figure_2"
BEGIN, END = "<!-- docs/results/regenerate.py writes from here -->", "<!-- to here -->"
GRID, SCALE = "paper", "nano"


def main() -> None:
    """Runs the sweep and writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="runs", help="folder where runs live (default: %(default)s)")
    store = parser.parse_args().store
    if sweep.main(["--grid", GRID, "--scale", SCALE, "--store", store]):
        raise SystemExit("The sweep has runs without a result: nothing was copied.")
    folder = Store(store).report(f"{GRID}-{SCALE}")
    for old in HERE.glob("*.png"):
        old.unlink()
    for path in sorted([*folder.glob("*.png"), folder / "results.parquet", folder / "claims.json"]):
        shutil.copy(path, HERE / path.name)
    rows = pyarrow.parquet.read_table(HERE / "results.parquet").to_pylist()
    claims = json.loads((HERE / "claims.json").read_text())
    figures = sorted((path.stem for path in HERE.glob("*.png")), key=_number)
    (HERE / "README.md").write_text(page(rows, claims, figures, origins(Store(store), rows)))
    README.write_text(in_readme(README.read_text(), claims))


def origins(store: Store, rows: list[dict[str, Any]]) -> dict[str, str]:
    """What the runs were trained with and on, each with all its values."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        origin = (store.run(row["id"]).result() or {})["provenance"]
        facts = {"device": origin["device"], "Python": origin["python"], **origin["packages"]}
        facts |= {"slicedice's revision": origin["git_revision"], "text's fingerprint": origin["data_fingerprint"]}
        for name, value in facts.items():
            found.setdefault(name, {})[str(value)] = None
    days = sorted(row["finished"][:10] for row in rows)
    return {name: ", ".join(values) for name, values in found.items()} | {
        "trained": " to ".join(dict.fromkeys((days[0], days[-1])))
    }


def page(rows: list[dict[str, Any]], claims: list[dict], figures: list[str], facts: dict[str, str]) -> str:
    """The page of this folder."""
    states = Counter(row["state"] for row in rows)
    return "\n".join(
        [
            "# What the whole study found at `nano`",
            "",
            f"All grids at the smallest scale: {', '.join(f'{n} runs {state}' for state, n in states.items())}. "
            "`results.parquet` has a row for each run with every column of the report, `claims.json` the claims with "
            "the runs behind each. On two idle cores the runs take about an hour.",
            "",
            "```bash",
            "python docs/results/regenerate.py   # trains what the store lacks, and writes this folder",
            "```",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "",
            "At this scale a model has a few thousandths of the parameters of the study's smallest main one, and reads "
            "bytes: what is contradicted here is so at `nano`, not in the study.",
            "",
            "## Claims",
            "",
            *claims_table(claims, short=False),
            "",
            "## Figures",
            "",
            *(f"![{name}]({name}.png)\n" for name in figures),
        ]
    )


def claims_table(claims: Iterable[dict], *, short: bool) -> list[str]:
    """Lines of a Markdown table of claims; if `short`, without effects and counts of runs."""
    names = ["claim", "verdict", *([] if short else ["effect, 95 % interval", "runs"]), "what the runs say"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for claim in claims:
        effect = ""
        if claim["effect"] is not None:
            effect = f"{claim['of']}: {claim['effect']:+.3f}"
            effect += " [{:+.3f}, {:+.3f}]".format(*claim["interval"]) if claim["interval"] else ""
            effect += f" {claim['unit']}"
        middle = [] if short else [effect, str(len(claim["runs"]))]
        cells = [f"({claim['claim']}) {claim['text']}", f"**{claim['verdict']}**", *middle, claim["sentence"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def in_readme(text: str, claims: list[dict]) -> str:
    """The README with one figure and the claims between its two marks."""
    new = [
        BEGIN,
        f"![Held-out loss over count and granularity at nano](docs/results/{SHOWN}.png)",
        "",
        *claims_table(claims, short=True),
        END,
    ]
    found = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: "\n".join(new), text, flags=re.DOTALL)
    if found[1] != 1:
        raise SystemExit(f"{README.name} has to have the marks {BEGIN} and {END} once.")
    return found[0]


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else 999, name


if __name__ == "__main__":
    main()
