"""How fast a token store is made: tokens a second with bytes, and the tokenizer library's own time over ours.

    python benchmarks/prepare.py [--json]

The text is that of the standard library, in one file of JSON lines, four times over (38 MB). With bytes, one process
makes the store. With a tokenizer.json of 8,000 ids, `prepare` (reading, encoding on one process a core, removing
repeats, holding out, sorting, writing) takes turns with the `tokenizers` library alone, which encodes the same texts
from memory with as many threads as there are cores; figures are medians over the turns (ratio above 1: ours is faster).
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import tokenizers

from slicedice import machine
from slicedice.data import TokenStore, prepare
from slicedice.data.account import Account
from slicedice.data.embedded import Embedded
from slicedice.data.tokenizer_training import train_tokenizer
from slicedice.data.user_text import UserText

TURNS = 5
COPIES = 4
BATCH = 256
"""Documents that the library is given at once."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        texts = [document.text for part in Embedded().parts() for document in part.read(Account(skip=False))]
        texts = [f"{text}\n{copy}" for copy in range(COPIES) for text in texts]
        path = room / "text.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

        taken = [store(path, "bytes", room / f"bytes-{turn}", 1) for turn in range(TURNS)]
        of_bytes = statistics.median(rate for rate, _ in taken) / 1e6

        coder, cores = room / "tokenizer.json", len(machine.cores())
        train_tokenizer(UserText(str(path)), coder, 8000, 10, Account(skip=False))
        turns = []
        for turn in range(TURNS):
            library = alone(coder, texts)
            ours, _ = store(path, str(coder), room / f"pieces-{turn}", cores)
            turns.append((library, ours))
        ratio = statistics.median(ours / library for library, ours in turns)
        library, ours = (statistics.median(rates) / 1e6 for rates in zip(*turns, strict=True))
    if options.json:
        rates = {"bytes": of_bytes, "library": library, "ours": ours}
        ratios = {"8,000 ids, ours over the library": round(ratio, 3)}
        print(json.dumps({"million_tokens_a_second": rates, "cores": cores, "ratios": ratios}))
    else:
        print(f"bytes, one process: {of_bytes:.1f}M tokens a second")
        print(f"8,000 ids, {cores} cores: library {library:.2f}M, ours {ours:.2f}M tokens a second; ratio {ratio:.2f}")


def store(path: Path, tokenizer: str, root: Path, processes: int) -> tuple[float, TokenStore]:
    """Makes a token store; returns its tokens a second and it."""
    begin = time.perf_counter()
    made = prepare(str(path), tokenizer, root, processes=processes)
    seconds = time.perf_counter() - begin
    return (made.train.size + sum(held.size for held in made.heldout.values())) / seconds, made


def alone(tokenizer: Path, texts: list[str]) -> float:
    """Tokens a second of the library by itself, ids included."""
    library = tokenizers.Tokenizer.from_file(str(tokenizer))
    begin, count = time.perf_counter(), 0
    for start in range(0, len(texts), BATCH):
        encodings = library.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
        count += sum(len(encoding.ids) for encoding in encodings)
    return count / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
