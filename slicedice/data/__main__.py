"""Text for training: `python -m slicedice.data prepare|inspect|train`: token stores, what they hold, tokenizers.

A door, and so the one file of this folder that may import other rooms.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from slicedice import copies, machine
from slicedice.commandline import door
from slicedice.data.account import Account
from slicedice.data.build import find_source
from slicedice.data.errors import DataError, Unusable
from slicedice.data.inspecting import check, samples
from slicedice.data.progress import Bar
from slicedice.data.store import TokenStore
from slicedice.data.tokenizer import padded_vocab_size
from slicedice.data.tokenizer_training import train_tokenizer
from slicedice.data.user_text import UserText
from slicedice.report.tables import plain_console, show
from slicedice.spec.config import absolute
from slicedice.spec.errors import require
from slicedice.store import Store

HELDOUT = 0.05
"""Share of each domain that is held out, unless another is asked for."""

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m slicedice.data", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    verbs = p.add_subparsers(dest="verb", required=True, metavar="VERB")

    text = argparse.ArgumentParser(add_help=False)
    text.add_argument(
        "--source",
        help='"embedded", the path of a file or folder, or "seqio:" and a corpus: c4, wikipedia, dolma, open_mix, '
        "olmoe_mix or one of its parts, or one of your own",
    )
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--data_dir", default="", help="where corpora lie: TFDS's data_dir, or the folder of olmoe_mix")
    where.add_argument("--module", default="", help="a module that registers SeqIO tasks of your own, or its file")
    where.add_argument("--skip_bad", action="store_true", help="pass over what cannot be used; else it is refused")
    tokens = argparse.ArgumentParser(add_help=False)
    tokens.add_argument("--tokenizer", default="bytes", help='"bytes", or a tokenizer.json or SentencePiece .model')
    tokens.add_argument("--tokens", type=count, default=0, help="about how many to take, as in 1B; else all there are")
    tokens.add_argument("--heldout_fraction", type=float, default=HELDOUT, help="of each domain (default: %(default)s)")
    tokens.add_argument("--store", default="runs", help="the folder where runs live (default: %(default)s)")
    tokens.add_argument("--json", action="store_true", help="print the manifest as JSON")

    make = verbs.add_parser(
        "prepare", parents=[text, where, tokens], help="make the token store of a text", allow_abbrev=False
    )
    make.add_argument("--processes", type=int, default=0, help="that encode; 0 for one a core")

    look = verbs.add_parser(
        "inspect", parents=[text, tokens], help="show what was prepared of a text", allow_abbrev=False
    )
    look.add_argument("folder", metavar="FOLDER", nargs="?", help="a token store, instead of the flags that made it")
    look.add_argument("--samples", type=int, default=1, help="documents to show of each domain (default: %(default)s)")
    look.add_argument("--check", action="store_true", help="read all tokens: is any held-out document trained on?")

    learn = verbs.add_parser("train", parents=[text, where], help="train a tokenizer on a text", allow_abbrev=False)
    learn.add_argument("--vocab_size", type=int, required=True, help="number of ids, special ones included")
    learn.add_argument("--megabytes", type=int, default=1000, help="of text to learn from (default: %(default)s)")
    learn.add_argument(
        "tokenizer", metavar="FILE", help="ends in .json for byte-level BPE, or in .model for SentencePiece's unigram"
    )
    return p


def count(text: str) -> int:
    """Reads a number of tokens, as in 500M or 1.5B."""
    unit = text[-1:].upper() if text[-1:].isalpha() else ""
    try:
        return round(float(text[: len(text) - len(unit)]) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 500M or 1B") from None


@door
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status: 0, or 1 if a check failed."""
    options = parser().parse_args(arguments)
    given = bool(options.source) != bool(getattr(options, "folder", None))
    require(given, "--source", options.source, "name a text" + (" or a FOLDER" if options.verb == "inspect" else ""))
    console = plain_console(stderr=getattr(options, "json", False))
    if options.verb == "prepare":
        return _prepare(options, console)
    if options.verb == "inspect":
        return _inspect(options, console)
    return _train(options, console)


@contextmanager
def _refusing() -> Iterator[None]:
    """Says what can be done about text that is refused."""
    try:
        yield
    except Unusable as error:
        raise DataError(f"{error} Or pass over such documents, and count them, with --skip_bad.") from error


def _train(options: argparse.Namespace, console: Console) -> int:
    source = find_source(options.source, options.data_dir, options.module)
    account = Account(skip=options.skip_bad)
    with _refusing():
        learned = train_tokenizer(source, Path(options.tokenizer), options.vocab_size, options.megabytes, account)
    short = learned.vocab_size < options.vocab_size
    more = f" The text gives no more; {options.vocab_size:,} were asked for." if short else ""
    console.print(f"{options.tokenizer}: {learned.vocab_size:,} ids.{more}", highlight=False, soft_wrap=True)
    _tell(account.state(), console)
    return 0


def _prepare(options: argparse.Namespace, console: Console) -> int:
    require(options.processes >= 0, "--processes", options.processes, "use a number from 0")
    store = Store(options.store).create()
    source = find_source(options.source, options.data_dir, options.module)
    with Bar(console) as bar, _refusing():
        tokens = copies.prepare_tokens(
            store,
            absolute(options.source),
            absolute(options.tokenizer),
            options.heldout_fraction,
            options.tokens,
            text=source,
            skip_bad=options.skip_bad,
            processes=options.processes or len(machine.cores()),
            watch=bar.show,
        )
    if options.json:
        print(json.dumps({"path": str(tokens.path), **tokens.manifest}))
        return 0
    _describe(tokens, console)
    fields = {"data.source": options.source}
    fields |= {} if options.tokenizer == "bytes" else {"data.tokenizer": options.tokenizer}
    fields |= {"data.tokens": options.tokens} if options.tokens else {}
    fields |= {} if options.heldout_fraction == HELDOUT else {"data.heldout_fraction": options.heldout_fraction}
    fields |= {} if tokens.vocab_size <= 256 else {"model.vocab_size": padded_vocab_size(tokens.vocab_size)}
    if isinstance(source, UserText) and source.left_out:
        told = ", ".join(f"{number:,} {suffix}" for suffix, number in source.left_out.most_common(8))
        console.print(f"Left out by how their names end: {told}.", highlight=False, markup=False, soft_wrap=True)
    told = " ".join(shlex.quote(f"--config.{name}={value}") for name, value in fields.items())
    console.print(f"{tokens.path}\nTrain on it with: {told}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _inspect(options: argparse.Namespace, console: Console) -> int:
    if options.folder:
        if not (Path(options.folder) / "meta.json").exists():
            said = "it has no meta.json. Name the folder that prepare has printed"
            raise DataError(f"{options.folder} is no token store: {said}.")
        tokens = TokenStore(Path(options.folder))
    else:
        text = absolute(options.source), absolute(options.tokenizer)
        tokens = copies.open_tokens(Store(options.store), *text, options.heldout_fraction, options.tokens)
    faults = check(tokens) if options.check else []
    if options.json:
        print(
            json.dumps({"path": str(tokens.path), **tokens.manifest, **({"faults": faults} if options.check else {})})
        )
        return int(bool(faults))
    _describe(tokens, console)
    for domain in tokens.domains if options.samples > 0 else ():
        for text in samples(tokens, domain, options.samples):
            console.print(f"\n{domain}, held out:", highlight=False)
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    if options.check:
        well = "Checked: tokens are as they were written, and no held-out document is trained on."
        console.print("\n".join(faults) or well, highlight=False, markup=False, soft_wrap=True)
    return int(bool(faults))


def _describe(tokens: TokenStore, console: Console) -> None:
    """Prints what a store holds and what of its text could not be used."""
    manifest, coder = tokens.manifest, tokens.manifest["tokenizer"]
    table = Table(title=f"{manifest['source']} · {coder['identity']}, {tokens.vocab_size:,} ids · {tokens.fingerprint}")
    table.add_column("domain")
    for heading in ("documents", "tokens", "share", "bytes/token", "held out", "repeated"):
        table.add_column(heading, justify="right")
    for domain in manifest["domains"]:
        both = {name: domain[f"train_{name}"] + domain[f"heldout_{name}"] for name in ("tokens", "bytes")}
        short = domain["wanted_tokens"] > both["tokens"]
        wanted = f" of {domain['wanted_tokens']:,} wanted" if short else ""
        table.add_row(
            domain["name"],
            f"{domain['train_documents']:,}",
            f"{domain['train_tokens']:,}{wanted}",
            f"{domain['share']:.2%}",
            f"{both['bytes'] / both['tokens']:.2f}",
            f"{domain['heldout_tokens']:,}",
            f"{domain['repeated_documents']:,}",
        )
    show(table, console)
    _tell(manifest["problems"], console)


def _tell(problems: dict[str, Any], console: Console) -> None:
    """Prints how much could not be used, and the first of each kind."""
    for kind, number in problems["counts"].items():
        named = problems["named"].get(kind, [])
        console.print(
            f"{number:,} passed over, {kind}: {named[0] if named else ''}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    sys.exit(main())
