"""Corpora that SeqIO reads: data sets as TFDS writes them, folders as the study's mix comes, tasks of one's own."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from slicedice.data import DataError, open_store, prepare
from slicedice.data.account import Account
from slicedice.data.build import find_source
from slicedice.data.inspecting import check
from tests.data.reading import documents

seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")

pytestmark = pytest.mark.filterwarnings("default")  # TensorFlow's own libraries warn at length

NAMES = {
    "c4": ("c4", "en", "3.1.0"),
    "wikipedia": ("wikipedia", "20230601.en", "1.0.0"),
    "dolma": ("dolma", "", "1.0.0"),
}


def _texts(name: str, count: int) -> list[str]:
    return [f"{name} document {i} " * (i % 7 + 1) for i in range(count)]


def _write_tfds(root: Path, name: str, texts: Sequence[str | bytes], column: str = "text") -> None:
    """Writes a data set in the format of TFDS, where its builder of that name looks for it."""
    dataset, config, version = NAMES.get(name, (name, "", "1.0.0"))
    rows = tf.data.Dataset.from_tensor_slices({column: [t.encode() if isinstance(t, str) else t for t in texts]})
    tfds.dataset_builders.store_as_tfds_dataset(
        name=dataset,
        config=config or None,
        version=version,
        data_dir=root,
        features=tfds.features.FeaturesDict({column: tfds.features.Text()}),
        split_datasets={"train": rows},
        disable_shuffling=True,
    )


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three corpora of TFDS, 400 documents each, one of which is blank."""
    root = tmp_path_factory.mktemp("tfds")
    for name in NAMES:
        _write_tfds(root, name, [*_texts(name, 399), " "])
    return root


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's mix in small: shards of JSON lines, one of them damaged, with a line that is none."""
    root = tmp_path_factory.mktemp("olmoe")
    for part in ("dclm", "starcoder", "pes2o", "arxiv", "open-web-math", "algebraic-stack", "wiki"):
        (root / "data" / part).mkdir(parents=True)
        for shard in range(2):
            lines = "".join(json.dumps({"text": t, "id": 1}) + "\n" for t in _texts(f"{part} {shard}", 150))
            (root / "data" / part / f"{part}-{shard:04}.json.zst").write_bytes(zstandard.compress(lines.encode()))
    shard = root / "data" / "wiki" / "wiki-0002.jsonl"
    shard.write_text('{"text": "one more"}\n{text\n')
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_of_tfds_is_a_task(public: Path, name: str):
    source = find_source(f"seqio:{name}", str(public))
    account = Account(skip=False)
    found = documents(source, account)
    assert [document.text for document in found] == _texts(name, 399)
    assert {document.domain for document in found} == {name}
    assert found[3].where == f"{name}:4"
    assert account.counts == {"blank": 1}
    assert source.shares() == {name: 1.0}


def test_the_open_mix_has_the_shares_of_its_tokens(public: Path, tmp_path: Path):
    source = find_source("seqio:open_mix", str(public))
    shares = source.shares()
    assert sorted(shares) == ["c4", "dolma", "wikipedia"]
    store = prepare("seqio:open_mix", "bytes", tmp_path, 0.1, 20_000, text=source)
    for domain in store.manifest["domains"]:
        wanted = 20_000 * shares[domain["name"]] / sum(shares.values())
        assert wanted <= domain["train_tokens"] + domain["heldout_tokens"] <= wanted + 200
    assert check(store) == []
    # From now on neither text nor TensorFlow is needed.
    assert prepare("seqio:open_mix", "bytes", tmp_path, 0.1, 20_000).fingerprint == store.fingerprint
    assert open_store("seqio:open_mix", "bytes", tmp_path, 0.1, 20_000).fingerprint == store.fingerprint


def test_the_studys_mix_has_the_studys_proportions(olmoe: Path):
    source = find_source("seqio:olmoe_mix", str(olmoe))
    tokens = {"dclm": 3860, "starcoder": 101, "pes2o": 57.2, "arxiv": 21.1}
    tokens |= {"open_web_math": 12.7, "algebraic_stack": 12.6, "wiki": 3.69}
    assert source.shares() == {f"olmoe_{name}": share for name, share in tokens.items()}
    assert 0.94 < tokens["dclm"] / sum(tokens.values()) < 0.96
    assert len(source.parts()) == 15


def test_the_studys_mix_is_prepared_past_a_broken_line(olmoe: Path, tmp_path: Path):
    source = find_source("seqio:olmoe_mix", str(olmoe))
    with pytest.raises(DataError, match=r"wiki-0002\.jsonl:2 is not JSON"):
        prepare("seqio:olmoe_mix", "bytes", tmp_path, 0.1, text=source)
    store = prepare("seqio:olmoe_mix", "bytes", tmp_path, 0.1, text=source, skip_bad=True)
    assert sum(domain["train_documents"] + domain["heldout_documents"] for domain in store.manifest["domains"]) == 2101
    assert store.manifest["problems"]["counts"] == {"not JSON": 1}
    assert "olmoe_open_web_math" in store.domains


def test_a_part_alone_and_through_seqio_itself(olmoe: Path):
    found = documents(find_source("seqio:olmoe_arxiv", str(olmoe)))
    assert {document.domain for document in found} == {"olmoe_arxiv"}
    dataset = seqio.get_mixture_or_task("olmoe_arxiv").get_dataset(sequence_length=None, shuffle=False)
    assert [row["targets"].decode() for row in dataset.as_numpy_iterator()] == [document.text for document in found]


def test_a_task_of_ones_own(public: Path, tmp_path: Path):
    _write_tfds(tmp_path, "poems", ["roses", b"viol\xffets", "thorns"], column="line")
    module = tmp_path / "my_tasks.py"
    module.write_text(
        "import seqio, tensorflow as tf\n"
        "def lines(dataset):\n"
        "    return dataset.map(lambda row: {'targets': row['line']})\n"
        "seqio.TaskRegistry.add('poems', source=seqio.TfdsDataSource('poems:1.0.0', splits=['train']),\n"
        "    preprocessors=[lines], output_features={'targets': seqio.Feature(\n"
        "        seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0)})\n"
        "seqio.MixtureRegistry.add('poems_and_c4', [('poems', 1), ('c4', 3)])\n"
    )
    for name in NAMES:
        (tmp_path / name).symlink_to(public / name)
    source = find_source("seqio:poems_and_c4", str(tmp_path), str(module))
    assert source.shares() == {"c4": 3.0, "poems": 1.0}
    account = Account(skip=True)
    assert [d.text for d in documents(source, account) if d.domain == "poems"] == ["roses", "thorns"]
    assert account.named["not UTF-8"] == ["poems:2 is not UTF-8 (invalid start byte). Text must be UTF-8."]


def test_a_task_of_token_ids_is_refused(public: Path):
    feature = {"targets": seqio.Feature(seqio.PassThroughVocabulary(9), add_eos=False)}
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices({"targets": [[1, 2]]}), splits=["train"]
    )
    seqio.TaskRegistry.add("ids", source=source, preprocessors=[], output_features=feature)
    with pytest.raises(DataError, match=r"seqio:ids gives .*needs text: a string as text, targets_pretokenized"):
        documents(find_source("seqio:ids"))


@pytest.mark.parametrize(
    ("name", "data_dir", "module", "message"),
    [
        ("nothing", "", "", r"no task or mixture 'nothing'. Here are c4, .*olmoe_mix; others need --module"),
        ("c4", "", "no_such_module", r"no_such_module cannot be imported: ModuleNotFoundError"),
        ("c4", "empty", "", r"seqio:c4 cannot be read .*tfds build"),
        ("olmoe_wiki", "empty", "", r"empty/wiki cannot be read: No such file"),
        ("olmoe_wiki", "", "", r"Say where the folder wiki is, with --data_dir"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch, name: str, data_dir: str, module: str, message: str):
    from slicedice.data import corpora

    monkeypatch.setattr(corpora.Folder, "data_dir", "")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        documents(find_source(f"seqio:{name}", data_dir and str(tmp_path / data_dir), module))


def test_other_files_of_the_same_name_are_another_text(tmp_path: Path):
    stores = []
    for word in ("alpha", "beta"):
        _write_tfds(tmp_path / word, "wikipedia", _texts(word, 100))
        source = find_source("seqio:wikipedia", str(tmp_path / word))
        stores.append(prepare("seqio:wikipedia", "bytes", tmp_path / "stores", text=source))
        assert word in stores[-1].tokenizer.decode(stores[-1].train[:40].tolist())
    assert stores[0].path != stores[1].path
    lines = tmp_path / "lines.txt"
    feature = {"targets": seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0)}
    seqio.TaskRegistry.add(
        "lines",
        source=seqio.TextLineDataSource({"train": str(lines)}),
        preprocessors=[lambda dataset: dataset.map(lambda line: {"targets": line})],
        output_features=feature,
    )
    identities = []
    for word in ("one", "three"):
        lines.write_text(f"{word}\n{word} more\n")
        identities.append(find_source("seqio:lines").identity())
    assert identities[0] != identities[1]


def test_another_module_is_another_text(public: Path, tmp_path: Path):
    identities = []
    for number in (1, 2):
        module = tmp_path / "mine.py"
        module.write_text(f"VALUE = {number}\n")
        identities.append(find_source("seqio:c4", str(public), str(module)).identity())
    assert identities[0] != identities[1]


def test_a_shard_that_was_cut_short_is_named(tmp_path: Path):
    _write_tfds(tmp_path, "wikipedia", _texts("wikipedia", 100))
    (shard,) = tmp_path.glob("wikipedia/*/*/*.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"wikipedia:\d+ cannot be read, nor what follows: "):
        documents(find_source("seqio:wikipedia", str(tmp_path)))
    account = Account(skip=True)
    found = documents(find_source("seqio:wikipedia", str(tmp_path)), account)
    assert 0 < len(found) < 100
    assert account.counts == {"damaged file": 1}


def test_what_is_not_prepared_is_told_how(tmp_path: Path):
    with pytest.raises(DataError, match=r"tokens of seqio:c4 are not in .*slicedice\.data prepare --source seqio:c4"):
        prepare("seqio:c4", "bytes", tmp_path)


def test_reading_a_store_imports_no_tensorflow(public: Path, tmp_path: Path):
    import os
    import subprocess

    prepare("seqio:c4", "bytes", tmp_path, text=find_source("seqio:c4", str(public)))
    code = (
        "import sys; from pathlib import Path; from slicedice.data import prepare, train_batch\n"
        f"train_batch(prepare('seqio:c4', 'bytes', Path({str(tmp_path)!r})), 0, 0, 2, 8)\n"
        "print([name for name in ('tensorflow', 'seqio') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"
