import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsv3lab.config import ConfigError
from dsv3lab.data import DataError, Dataset, digests, open_dataset, prepare
from tests.data.packages import data_config, install, prose, two_packages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        two_packages(folder, patch)
        yield folder


@pytest.fixture(scope="module")
def dataset(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(data_config(), tmp_path_factory.mktemp("root"), progress=lambda line: None)


def text_of(dataset: Dataset, tokens: np.ndarray) -> str:
    return b"".join(dataset.token_bytes[token] for token in tokens).decode()


def test_preparing_again_opens_what_is_there_and_elsewhere_gives_the_same_bytes(dataset: Dataset, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in dataset.folder.rglob("*")}
    lines: list[str] = []
    assert prepare(data_config(), dataset.folder.parent, progress=lines.append).folder == dataset.folder
    assert {path: path.stat().st_mtime_ns for path in dataset.folder.rglob("*")} == before
    assert len(lines) == 1 and "ready" in lines[0]
    other = prepare(data_config(), tmp_path, progress=lines.append)
    assert other.folder.name == dataset.folder.name == f"tiny-{dataset.digest[:12]}"
    assert (other.folder / "manifest.json").read_bytes() == (dataset.folder / "manifest.json").read_bytes()


def test_the_digest_follows_the_configuration_and_the_texts(dataset: Dataset, tmp_path: Path, monkeypatch):
    quiet = {"progress": lambda line: None}
    digests = {dataset.digest, prepare(data_config(shuffle_seed=1), tmp_path, **quiet).digest}
    two_packages(tmp_path / "site", monkeypatch)
    install(tmp_path / "site", "beta", {"beta/m0.py": prose(77)}, readme=prose(60))
    digests.add(prepare(data_config(), tmp_path, **quiet).digest)
    assert len(digests) == 3


def test_windows_hold_every_byte_of_the_documents_once(dataset: Dataset):
    for name in dataset.domains:
        held_out = dataset.validation(name)
        targets = held_out.windows[:, 1:].reshape(-1)
        assert text_of(dataset, targets[: held_out.targets]) == "".join(held_out.documents)
        assert sum(held_out.n_bytes) == sum(len(text.encode()) for text in held_out.documents)
        assert (targets[held_out.targets :] == dataset.end_of_document).all()
        assert (targets[: held_out.targets] == dataset.end_of_document).sum() == len(held_out.documents)
        np.testing.assert_array_equal(held_out.windows[1:, 0], held_out.windows[:-1, -1])
        assert held_out.windows[0, 0] == dataset.end_of_document


@pytest.mark.parametrize("every", [1, 2, 3, 1000])
def test_a_sample_of_the_held_out_documents_has_every_size(dataset: Dataset, every: int):
    everything = dataset.validation("source")
    part = dataset.validation("source", every=every)
    by_size = sorted(everything.n_bytes)  # of one package
    assert sorted(part.n_bytes) == by_size[min(every // 2, len(by_size) - 1) :: every]
    assert part.n_bytes == [len(text.encode()) for text in part.documents]
    assert part.documents == [text for text in everything.documents if text in part.documents]
    tokens = part.windows[:, 1:].reshape(-1)[: part.targets]
    assert text_of(dataset, tokens) == "".join(part.documents) and tokens[-1] == dataset.end_of_document


def test_the_manifest_counts_what_is_there(dataset: Dataset):
    for name in dataset.domains:
        counts = dataset.manifest["domains"][name]["train"]
        stream = dataset.training_tokens(name)
        assert isinstance(stream, np.memmap) and stream.dtype == np.uint16
        assert counts["tokens"] == len(stream)
        assert counts["documents"] == (stream == dataset.end_of_document).sum() - 1
        assert counts["bytes"] == len(text_of(dataset, stream).encode())
        assert counts["windows"] == dataset.windows(name) == (len(stream) - 1) // dataset.sequence_length


def test_batches_are_a_function_of_the_step(dataset: Dataset):
    first = [dataset.batch_at(step, batch_size=4) for step in range(6)]
    again = open_dataset(dataset.folder)
    for step in (5, 0, 3):
        np.testing.assert_array_equal(again.batch_at(step, batch_size=4), first[step])
    assert first[0].dtype == np.int32 and first[0].shape == (4, dataset.sequence_length + 1)
    # Windows are numbered through the steps, so another batch size only cuts the sequence elsewhere.
    np.testing.assert_array_equal(
        np.concatenate(first), np.concatenate([dataset.batch_at(s, batch_size=8) for s in range(3)])
    )


def test_each_window_comes_once_in_each_epoch_of_its_domain(dataset: Dataset):
    steps = 3 * sum(dataset.windows(name) for name in dataset.domains)
    domain, _ = dataset.mixture.assign(np.arange(steps))
    batch = dataset.batch_at(0, batch_size=steps)
    for index, name in enumerate(dataset.mixture.domains):
        n, length = dataset.windows(name), dataset.sequence_length
        stream = np.asarray(dataset.training_tokens(name), np.int32)
        expected = sorted(stream[i * length : i * length + length + 1].tolist() for i in range(n))
        rows = batch[domain == index].tolist()
        assert len(rows) > n
        for epoch in range(len(rows) // n):
            assert sorted(rows[epoch * n : (epoch + 1) * n]) == expected
        assert rows[:n] != rows[n : 2 * n] or len(rows) < 2 * n
        assert dataset.epochs(steps, 1)[name] == len(rows) / n


def test_training_never_shows_a_validation_document(dataset: Dataset):
    for name in dataset.domains:
        train = text_of(dataset, dataset.training_tokens(name))
        assert all(text not in train for text in dataset.validation(name).documents)


def test_a_domain_that_does_not_exist_is_refused_with_the_nearest(dataset: Dataset):
    for call in (dataset.validation, dataset.training_tokens, dataset.windows):
        with pytest.raises(DataError, match="'sorce'; did you mean 'source'"):
            call("sorce")


@pytest.mark.parametrize("kind", ["flip", "delete", "add", "manifest", "format"])
def test_a_changed_file_is_named(dataset: Dataset, tmp_path: Path, kind: str):
    folder = tmp_path / "copy"
    shutil.copytree(dataset.folder, folder)
    files = sorted(json.loads((folder / "manifest.json").read_bytes())["files"])
    assert len(files) == 9
    named = "manifest.json"
    if kind in ("flip", "delete"):
        for name in files:
            data = (folder / name).read_bytes()
            (folder / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
            if kind == "delete":
                (folder / name).unlink()
            with pytest.raises(DataError, match=f"{name}.*(changed|missing)"):
                open_dataset(folder)
            (folder / name).write_bytes(data)
        open_dataset(folder)
        return
    if kind == "add":
        named = "train/more.bin"
        (folder / named).write_bytes(b"")
    elif kind == "manifest":
        (folder / named).write_text("{")
    else:
        (folder / named).write_text((folder / named).read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(DataError, match=named):
        open_dataset(folder)


def test_a_prepared_folder_that_was_changed_is_not_used(site: Path, tmp_path: Path):
    folder = prepare(data_config(), tmp_path, progress=lambda line: None).folder
    path = folder / "train" / "source.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train/source\.bin: changed"):
        prepare(data_config(), tmp_path, progress=lambda line: None)


def test_another_python_keeps_the_folder_that_has_the_same_content(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(dataset.folder, tmp_path / dataset.folder.name)  # as an older version left it: without a side file
    manifest = tmp_path / dataset.folder.name / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes()) | {"fingerprint": "old"}))
    before = {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*")}
    built = []
    for python in ("3.12", "3.99", "3.12", "3.99"):
        monkeypatch.setattr(digests, "python_version", lambda python=python: python)
        lines: list[str] = []
        assert prepare(data_config(), tmp_path, progress=lines.append).folder == manifest.parent
        assert f"unknown on Python {python}" in lines[-1]
        built.append(any("stays as it is" in line for line in lines))
    assert built == [True, True, False, False]
    assert {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".tiny.fingerprints.json", ".tiny.lock"),
        manifest.parent.name,
    ]


def test_the_manifest_says_nothing_of_the_installation(dataset: Dataset):
    assert set(dataset.manifest) == {
        *("format", "digest", "config", "dtype", "vocab_size", "corpus", "domains", "files"),
    }
    assert set(dataset.manifest["corpus"]) == {"digest"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"key": 5}'])
def test_a_side_file_that_cannot_be_read_costs_a_preparation_only(site: Path, tmp_path: Path, text: str):
    folder = prepare(data_config(), tmp_path, progress=lambda line: None).folder
    (tmp_path / ".tiny.fingerprints.json").write_text(text)
    assert prepare(data_config(), tmp_path, progress=lambda line: None).folder == folder
    assert json.loads((tmp_path / ".tiny.fingerprints.json").read_bytes()).popitem()[1] == folder.name
    shutil.rmtree(folder)
    assert prepare(data_config(), tmp_path, progress=lambda line: None).folder == folder


def test_what_a_killed_preparation_left_is_removed_and_other_names_stay(site: Path, tmp_path: Path):
    (tmp_path / ".tiny.0abc.tmp" / "train").mkdir(parents=True)
    (tmp_path / ".tiny-2.0abc.tmp").mkdir()
    folder = prepare(data_config(), tmp_path, progress=lambda line: None).folder
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".tiny-2.0abc.tmp", ".tiny.fingerprints.json", ".tiny.lock"),
        folder.name,
    ]


def test_two_processes_at_once_prepare_one_folder(site: Path, tmp_path: Path):
    script = (
        "from pathlib import Path; from dsv3lab.data import prepare; from tests.data.packages import data_config\n"
        f"print(prepare(data_config(), Path({str(tmp_path / 'root')!r})).folder)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["."] + sys.path)}
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert printed[0][-1] == printed[1][-1]
    assert sum("documents written" in line for lines in printed for line in lines) == 1


def test_a_domain_shorter_than_a_window_is_refused(site: Path, tmp_path: Path):
    with pytest.raises(DataError, match="less than one window of 100001"):
        prepare(data_config(sequence_length=100_000), tmp_path, progress=lambda line: None)


def test_weights_that_cannot_be_mixed_are_refused_before_anything_is_read(site: Path, tmp_path: Path):
    domain = {"kind": "source", "packages": ["no-such-package"], "validation": [], "max_bytes": 9}
    both = {"a": domain | {"weight": 0.1234567}, "b": domain | {"weight": 1.0}}
    with pytest.raises(ConfigError, match="rounder numbers"):
        prepare(data_config(domains=both), tmp_path, progress=lambda line: None)


@pytest.mark.parametrize("name", ["overall", "a/b", "..", "Big"])
def test_names_that_cannot_be_folders_are_refused(name: str):
    domain = {"kind": "source", "weight": 1.0, "packages": ["a"], "validation": ["a"], "max_bytes": 9}
    with pytest.raises(ConfigError, match="a name is made of"):
        data_config(domains={name: domain})


def test_the_room_does_not_import_jax():
    subprocess.run([sys.executable, "-c", "import sys, dsv3lab.data; assert 'jax' not in sys.modules"], check=True)
