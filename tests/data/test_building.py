"""How a store is built: in parallel, again after a kill, within a budget of tokens, past bad input."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

import slicedice.data
from slicedice.data import DataError, TokenStore, encoding, open_store, prepare, writer
from slicedice.data.inspecting import check, samples


def _domain(folder: Path, name: str, texts: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def corpus(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of two domains, 700 documents in five files, some of them repeated."""
    letters = list("abcdef é漢")
    for number in range(5):
        texts = ["x" + "".join(rng.choice(letters, rng.integers(5, 400))) for _ in range(130)]
        _domain(tmp_path / "corpus" / "ab"[number % 2], f"part-{number}", [*texts, *texts[:10]])
    return tmp_path / "corpus"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and commits of a size that small texts have several of."""
    monkeypatch.setattr(encoding, "BATCH_BYTES", 4000)
    monkeypatch.setattr(encoding, "ALONE_BYTES", 8000)
    monkeypatch.setattr(writer, "COMMIT_BYTES", 6000)


def test_processes_and_batches_change_nothing(corpus: Path, tmp_path: Path, monkeypatch):
    whole = prepare(str(corpus), "bytes", tmp_path / "whole", 0.1)
    monkeypatch.setattr(encoding, "BATCH_BYTES", 4000)
    monkeypatch.setattr(encoding, "ALONE_BYTES", 8000)
    parallel = prepare(str(corpus), "bytes", tmp_path / "parallel", 0.1, processes=3)
    assert parallel.fingerprint == whole.fingerprint
    assert parallel.manifest == whole.manifest
    few = [prepare(str(corpus), "bytes", tmp_path / f"few{n}", 0.1, 20_000, processes=n) for n in (1, 3)]
    monkeypatch.setattr(encoding, "BATCH_BYTES", 10**6)
    few.append(prepare(str(corpus), "bytes", tmp_path / "few", 0.1, 20_000))
    assert len({store.fingerprint for store in few}) == 1


_KILLED = """
import os, signal, sys
from pathlib import Path
from slicedice.data import encoding, prepare, writer
encoding.BATCH_BYTES, writer.COMMIT_BYTES = 4000, 6000
left = int(sys.argv[3])
commit = writer.Writer._commit
def dying(self, index, spool, batch):
    global left
    left -= 1
    if left == 0:
        spool.write(b"half a docu")
        spool.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    commit(self, index, spool, batch)
writer.Writer._commit = dying
encode = encoding.encode
count = 0
def counting(documents, tokenizer):
    global count
    count += len(documents)
    return encode(documents, tokenizer)
encoding.encode = counting
prepare(sys.argv[1], "bytes", Path(sys.argv[2]), 0.1, skip_bad=True)
print(count)
"""


def test_a_killed_build_goes_on_where_it_was(corpus: Path, tmp_path: Path, rng):
    (corpus / "a" / "bad.jsonl").write_text('{"text": 3}\n' * 5 + '{"text": "fine"}\n')
    want = prepare(str(corpus), "bytes", tmp_path / "want", 0.1, skip_bad=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(slicedice.data.__file__).parents[2])}

    def run(after: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", _KILLED, str(corpus), str(tmp_path / "got"), str(after)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    for _ in range(3):
        assert run(int(rng.integers(2, 5))).returncode == -signal.SIGKILL
    done = run(10**6)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 650, "all was encoded again"
    got = open_store(str(corpus), "bytes", tmp_path / "got", 0.1)
    assert got.fingerprint == want.fingerprint
    assert got.manifest == want.manifest
    assert got.manifest["problems"]["counts"] == {"no text": 5}


def test_a_budget_is_divided_by_the_shares_of_domains(corpus: Path, tmp_path: Path, small_batches):
    store = prepare(str(corpus), "bytes", tmp_path / "stores", 0.1, 60_000)
    sizes = {name: sum(f.stat().st_size for f in (corpus / name).iterdir()) for name in "ab"}
    for domain in store.manifest["domains"]:
        wanted = 60_000 * sizes[domain["name"]] / sum(sizes.values())
        taken = domain["train_tokens"] + domain["heldout_tokens"]
        assert domain["wanted_tokens"] == round(wanted)
        assert wanted <= taken < wanted + 1300  # the last document is whole
    everything = prepare(str(corpus), "bytes", tmp_path / "stores", 0.1)
    assert everything.train.size > store.train.size


def test_a_budget_beyond_the_text_takes_it_all_and_says_so(corpus: Path, tmp_path: Path):
    store = prepare(str(corpus), "bytes", tmp_path / "stores", 0.1, 10**7)
    for domain in store.manifest["domains"]:
        assert domain["wanted_tokens"] > 10 * domain["train_tokens"]


GOOD = [f"document {i}" for i in range(6)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in GOOD).encode()
BAD = {
    "not JSON": ({"a.jsonl": LINES + b"{'text': 1}\n{\n"}, 2, r"a\.jsonl:7 is not JSON"),
    "deep": ({"a.jsonl": LINES + b"[" * 100_000 + b"\n"}, 1, r"a\.jsonl:7 is not JSON"),
    "not UTF-8": ({"a.jsonl": b'{"text": "\xfc"}\n' + LINES}, 1, r"a\.jsonl:1 is not UTF-8"),
    "surrogate": ({"a.jsonl": LINES + b'{"text": "\\ud800"}\n'}, 1, r"a\.jsonl:7 holds half of a surrogate"),
    "text": ({"a.jsonl": LINES, "b.txt": b"Gr\xfc\xdfe"}, 1, r"b\.txt:1 is not UTF-8"),
    "no text": ({"a.jsonl": LINES + b'{"txt": "x"}\n7\n{"text": null}\n'}, 3, r'a\.jsonl:7 has no string field "text"'),
    "blank": ({"a.jsonl": LINES + b'{"text": " "}\n{"text": ""}\n', "b.txt": b" \n"}, 3, r"a\.jsonl:7 is blank"),
    "short gzip": (
        {"a.jsonl": LINES, "b.jsonl.gz": gzip.compress(b'{"text": "whole"}')[:-9]},
        1,
        r"b\.jsonl\.gz is damaged or incomplete",
    ),
    "no gzip": ({"a.jsonl": LINES, "b.jsonl.gz": LINES}, 1, r"b\.jsonl\.gz is damaged or incomplete"),
    "short zst": (
        {"a.jsonl": LINES, "b.jsonl.zst": zstandard.compress(LINES)[:-3]},
        1,
        r"b\.jsonl\.zst is damaged or incomplete",
    ),
    "parquet": ({"a.jsonl": LINES, "b.parquet": b"PAR1"}, 1, r"b\.parquet is not a readable Parquet file"),
}


@pytest.mark.parametrize(("files", "count", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_passed_over_counted_and_named(tmp_path: Path, files: dict, count: int, message: str):
    for name, content in files.items():
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / "corpus" / name).write_bytes(content)
    store = prepare(str(tmp_path / "corpus"), "bytes", tmp_path / "stores", skip_bad=True)
    problems = store.manifest["problems"]
    assert sum(problems["counts"].values()) == count
    assert {kind: len(named) for kind, named in problems["named"].items()} == problems["counts"]
    (kind,) = problems["counts"]
    assert re.search(message, problems["named"][kind][0])
    texts = store.train.tobytes() + store.heldout["corpus"].tobytes()
    assert {text.decode() for text in texts.split(b"\xff")} >= set(GOOD)


def test_what_came_before_the_damage_is_kept(tmp_path: Path, rng):
    texts = ["".join(rng.choice(list("abcdefgh"), 2000)) for _ in range(200)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-1000])
    store = prepare(str(tmp_path / "a.jsonl.gz"), "bytes", tmp_path / "stores", skip_bad=True)
    kept = {text.decode() for text in (store.train.tobytes() + store.heldout["a"].tobytes()).split(b"\xff")} - {""}
    assert 150 < len(kept) < 200
    assert kept < set(texts)


def test_a_line_that_would_fill_the_memory_is_passed_over(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("slicedice.data.records.MAX_LINE", 1000)
    long = json.dumps({"text": "y" * 5000}).encode()
    (tmp_path / "a.jsonl").write_bytes(LINES + long + b"\n" + json.dumps({"text": "after"}).encode() + b"\n" + long)
    with pytest.raises(DataError, match=r"a\.jsonl:7 is longer than 1,000 bytes.*name the file \.txt"):
        prepare(str(tmp_path / "a.jsonl"), "bytes", tmp_path / "stores")
    store = prepare(str(tmp_path / "a.jsonl"), "bytes", tmp_path / "stores", skip_bad=True)
    assert store.manifest["problems"]["counts"] == {"line too long": 2}
    assert b"after" in store.train.tobytes() + store.heldout["a"].tobytes()


_PEAK = """
import resource, sys
from pathlib import Path
from slicedice.data import encoding, prepare
encoding.BATCH_BYTES = 100_000
prepare(sys.argv[1], "bytes", Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_text(tmp_path: Path, rng):
    """Nor with a single line: the second text is one, of 60 MB."""
    base = ["".join(rng.choice(list("abcdefgh"), 500)) for _ in range(100)]

    def peak(name: str, chunks: int, sep: str) -> int:
        with (tmp_path / name).open("w") as file:
            for i in range(chunks):
                file.write(sep.join(f"{i}{text}" for text in base) + sep)
        command = [sys.executable, "-c", _PEAK, str(tmp_path / name), str(tmp_path / "stores")]
        environment = {**os.environ, "PYTHONPATH": str(Path(slicedice.data.__file__).parents[2])}
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    little, much, one_line = peak("a.txt", 40, "\n"), peak("b.txt", 1200, "\n"), peak("c.txt", 1200, " ")
    assert much < little + 16_000  # kB, of 60,000 more
    assert one_line < little + 16_000


def test_check_finds_what_is_held_out_and_trained_on(corpus: Path, tmp_path: Path):
    store = prepare(str(corpus), "bytes", tmp_path / "stores", 0.1)
    assert check(store) == []
    leaked = store.heldout["a"].tobytes().split(b"\xff")[0] + b"\xff"
    path = store.path / "train.bin"
    content = path.read_bytes()
    path.write_bytes(leaked + content[len(leaked) :])
    faults = check(TokenStore(store.path))
    assert any("not those its fingerprint" in fault for fault in faults)
    assert any(
        "held out in a is trained on" in fault and leaked.decode(errors="ignore")[:5] in fault for fault in faults
    )


def test_samples_are_of_the_held_out_text(corpus: Path, tmp_path: Path):
    store = prepare(str(corpus), "bytes", tmp_path / "stores", 0.1)
    texts = samples(store, "b", 2, characters=10)
    assert texts == [text.decode()[:10] for text in store.heldout["b"].tobytes().split(b"\xff")[:2]]


def test_a_store_is_opened_without_its_text(corpus: Path, tmp_path: Path):
    store = prepare(str(corpus), "bytes", tmp_path / "stores", 0.1)
    corpus.rename(tmp_path / "away")
    assert open_store(str(corpus), "bytes", tmp_path / "stores", 0.1).fingerprint == store.fingerprint
    with pytest.raises(DataError, match="Prepare them first"):
        open_store(str(corpus), "bytes", tmp_path / "stores", 0.2)
    (request,) = (tmp_path / "stores").glob("*.json")
    request.write_text("[")
    with pytest.raises(DataError, match=r"\.json is damaged.*made again"):
        open_store(str(corpus), "bytes", tmp_path / "stores", 0.1)


def test_text_that_changed_is_prepared_again(corpus: Path, tmp_path: Path):
    first = prepare(str(corpus), "bytes", tmp_path / "stores", 0.1)
    _domain(corpus / "a", "more", ["another document"])
    second = prepare(str(corpus), "bytes", tmp_path / "stores", 0.1)
    assert second.fingerprint != first.fingerprint
    assert open_store(str(corpus), "bytes", tmp_path / "stores", 0.1).fingerprint == second.fingerprint


def test_a_batch_of_rows_after_another_file(tmp_path: Path):
    """Parquet files tell of no position, and so must not be asked for that of the file before."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "README.txt").write_text("read me")
    rows = [f"row {i}" for i in range(encoding.BATCH_DOCUMENTS + 10)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "t" / "train.parquet")
    store = prepare(str(tmp_path / "t"), "bytes", tmp_path / "stores")
    (domain,) = store.manifest["domains"]
    assert domain["train_documents"] + domain["heldout_documents"] == len(rows) + 1
    assert domain["share"] == 1.0


def test_what_lies_beyond_the_budget_was_never_there(tmp_path: Path, small_batches, monkeypatch):
    """However far reading goes ahead: three processes have read the bad line before the budget is known to be full."""
    monkeypatch.setattr(encoding, "ALONE_BYTES", 1)
    _domain(tmp_path, "t", [f"{i} " + "x" * 100 for i in range(200)])
    path = tmp_path / "t.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:100], "no json\n", *lines[100:]]))
    one, three = (prepare(str(path), "bytes", tmp_path / str(n), 0.1, 6000, processes=n) for n in (1, 3))
    skipping = prepare(str(path), "bytes", tmp_path / "skip", 0.1, 6000, processes=3, skip_bad=True)
    assert one.fingerprint == three.fingerprint == skipping.fingerprint
    assert skipping.manifest["problems"]["counts"] == {}
    with pytest.raises(DataError, match=r"t\.jsonl:101 is not JSON"):
        prepare(str(path), "bytes", tmp_path / "all", 0.1, processes=3)


def test_what_was_encoded_before_a_refusal_is_gone_on_with(corpus: Path, tmp_path: Path, small_batches, monkeypatch):
    (corpus / "b" / "z.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match="is not JSON"):
        prepare(str(corpus), "bytes", tmp_path / "stores", 0.1)
    encoded = []
    encode = encoding.encode
    monkeypatch.setattr(
        encoding, "encode", lambda documents, coder: encoded.extend(documents) or encode(documents, coder)
    )
    store = prepare(str(corpus), "bytes", tmp_path / "stores", 0.1, skip_bad=True)
    assert store.manifest["problems"]["counts"] == {"not JSON": 1}
    assert len(encoded) < 100
    assert store.fingerprint == prepare(str(corpus), "bytes", tmp_path / "anew", 0.1, skip_bad=True).fingerprint


def test_a_damaged_index_is_told_with_what_to_remove(corpus: Path, tmp_path: Path, small_batches):
    (corpus / "b" / "z.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match="is not JSON"):
        prepare(str(corpus), "bytes", tmp_path / "stores", 0.1)
    (index,) = (tmp_path / "stores").glob(".*.building/index.sqlite")
    index.write_bytes(b"no database, but long enough to be taken for one" * 100)
    with pytest.raises(DataError, match=r"is damaged \(file is not a database\).*end in \.building"):
        prepare(str(corpus), "bytes", tmp_path / "stores", 0.1, skip_bad=True)


def test_what_was_begun_of_text_that_changed_is_removed(corpus: Path, tmp_path: Path, small_batches):
    bad = corpus / "b" / "z.jsonl"
    bad.write_text("no json\n")
    with pytest.raises(DataError, match="is not JSON"):
        prepare(str(corpus), "bytes", tmp_path / "stores", 0.1)
    assert len(list((tmp_path / "stores").glob(".*.building"))) == 1
    bad.write_text('{"text": "mended"}\n')
    prepare(str(corpus), "bytes", tmp_path / "stores", 0.1)
    assert list((tmp_path / "stores").glob(".*")) == []


def test_texts_that_a_tokenizer_reads_alike_are_one_document(tmp_path: Path):
    import tokenizers

    vocabulary = {"[UNK]": 0, "[SEP]": 1, **{f"w{i}": i + 2 for i in range(40)}}
    lower = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    lower.normalizer = tokenizers.normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    lower.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    lower.add_special_tokens(["[SEP]"])
    lower.save(str(tmp_path / "lower.json"))
    _domain(tmp_path / "t", "a", [text for i in range(40) for text in (f"w{i} w1", f"W{i} w1", f"w{i} W1")])
    store = prepare(str(tmp_path / "t" / "a.jsonl"), str(tmp_path / "lower.json"), tmp_path / "stores", 0.3)
    assert check(store) == []
    assert store.manifest["domains"][0]["repeated_documents"] == 80


_PARENT = """
import os, sys, time
from pathlib import Path
from slicedice.data import encoding, prepare
if __name__ == "__main__":
    encoding.ALONE_BYTES, encoding.BATCH_BYTES = 1, 4000
    def watch(progress):
        import multiprocessing
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(0.5)
    prepare(sys.argv[1], "bytes", Path(sys.argv[2]), processes=2, watch=watch)
"""


def test_encoding_processes_end_with_their_parent(corpus: Path, tmp_path: Path):
    (tmp_path / "parent.py").write_text(_PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(slicedice.data.__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "parent.py"), str(corpus), str(tmp_path / "stores")]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children: list[int] = []
    while len(children) < 2:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert parent.poll() is None
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "they go on"
        time.sleep(0.1)
