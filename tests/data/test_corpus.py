import gzip
import json
from pathlib import Path

import pytest

from dsv3lab.config import ConfigError
from dsv3lab.data import DataError, Document, collect
from dsv3lab.data.corpus import is_held_out, read_dolma, write_dolma
from tests.data.packages import data_config, install, prose, two_packages


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    two_packages(tmp_path, monkeypatch)
    return tmp_path


def test_validation_is_whole_packages_in_every_domain(site: Path):
    corpus = collect(data_config())
    for splits in corpus.documents.values():
        assert {document.package for document in splits["train"]} == {"alpha"}
        assert {document.package for document in splits["validation"]} == {"beta"}


def test_a_family_held_out_in_one_domain_is_held_out_in_all(site: Path):
    config = data_config()
    install(site, "gamma", {"gamma/a.py": prose(70)}, readme=prose(71))
    source = {"kind": "source", "weight": 1.0, "packages": ["alpha", "beta", "gamma"], "validation": ["beta"]}
    readme = source | {"kind": "readme", "validation": ["gamma"]}
    config = data_config(domains={"source": source | {"max_bytes": 10**6}, "readme": readme | {"max_bytes": 10**6}})
    corpus = collect(config)
    for splits in corpus.documents.values():
        assert {document.package for document in splits["validation"]} == {"beta", "gamma"}


@pytest.mark.parametrize(
    ("family", "held_out"),
    [("pkg", True), ("pkg/sub", True), ("pkg/su", False), ("pkg/folder", False), ("pk", False), ("other/sub", False)],
)
def test_families_match_whole_names_below_the_import_folder(family: str, held_out: bool):
    assert is_held_out(Document("pkg/folder/sub/a.py", "text", "pkg"), [family]) == held_out


def test_one_file_is_no_family(site: Path):
    assert not is_held_out(Document("pkg/folder/sub.py", "text", "pkg"), ["pkg/sub"])
    domain = {"kind": "source", "weight": 1.0, "packages": ["alpha", "beta"], "max_bytes": 9}
    with pytest.raises(ConfigError, match="'beta/m0' has no document"):
        collect(data_config(domains={"source": domain | {"validation": ["beta/m0"]}}))


def test_the_readme_of_a_package_with_a_held_out_folder_stays_in_training():
    assert not is_held_out(Document("pkg/README", "text", "pkg"), ["pkg/sub"])


def test_equal_texts_never_stand_on_both_sides(site: Path):
    install(
        site, "alpha", {"alpha/a.py": prose(10), "alpha/b.py": prose(1), "alpha/c.py": prose(1) + "\n"}, readme=prose(2)
    )
    corpus = collect(data_config())  # beta/m0.py is prose(10) too
    train = [document.text for document in corpus.documents["source"]["train"]]
    assert len(train) == 1 and train[0].strip() == prose(1).strip()
    assert prose(10) in [document.text for document in corpus.documents["source"]["validation"]]
    assert corpus.left_out["source"]["duplicate"] == 2


def test_lengths_and_the_size_of_a_domain_are_bounded_and_counted(site: Path):
    size = len(prose(0).encode())
    everything = collect(data_config())
    assert everything.left_out["source"] == {"too short": 0, "too long": 0, "duplicate": 0, "above max_bytes": 0}
    domain = {"kind": "source", "weight": 1.0, "packages": ["alpha", "beta"], "validation": ["beta"]}
    few = collect(data_config(domains={"source": domain | {"max_bytes": 2 * size + 20}}))
    assert len(few.documents["source"]["train"]) == 2 and few.left_out["source"]["above max_bytes"] == 4
    assert few.documents["source"]["train"] == everything.documents["source"]["train"][:2]
    with pytest.raises(DataError, match="no train document"):
        collect(data_config(max_document_bytes=100))


def test_the_digest_covers_every_text_and_nothing_else(site: Path):
    before = collect(data_config()).digest()
    config = data_config(sequence_length=8, shuffle_seed=3)
    assert collect(config).digest() == before
    install(site, "alpha", {f"alpha/m{i}.py": prose(i) for i in range(6)}, readme=prose(50).replace("50", "51", 1))
    assert collect(config).digest() != before


def test_files_are_dolma_and_the_same_bytes_each_time(tmp_path: Path):
    items = [Document("pkg/a.py", "naïve\n\x00", "pkg"), Document("pkg/b.py", "β" * 100, "pkg")]
    for name in ("one", "two"):
        write_dolma(tmp_path / f"{name}.jsonl.gz", items, domain="source")
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    first = json.loads(gzip.decompress((tmp_path / "one.jsonl.gz").read_bytes()).splitlines()[0])
    assert sorted(first) == ["added", "created", "id", "metadata", "source", "text"]
    assert [record["text"] for record in read_dolma(tmp_path / "one.jsonl.gz")] == [item.text for item in items]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b"plain text", lambda b: gzip.compress(b'{"id": 1}\n')]
)
def test_a_damaged_file_is_named(tmp_path: Path, damage):
    path = tmp_path / "some.jsonl.gz"
    write_dolma(path, [Document("a", prose(1), "pkg")], domain="source")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"some\.jsonl\.gz"):
        list(read_dolma(path))


def test_a_held_out_family_of_no_listed_package_is_refused_with_the_nearest(site: Path):
    domain = {"kind": "source", "weight": 1.0, "packages": ["alpha", "beta"], "validation": ["betta/x"], "max_bytes": 9}
    with pytest.raises(ConfigError, match=r"domains\.source\.validation: 'betta/x'.*"):
        collect(data_config(domains={"source": domain}))


def test_a_package_cannot_feed_source_and_reference(site: Path):
    source = {"kind": "source", "weight": 1.0, "packages": ["alpha", "beta"], "validation": ["beta"], "max_bytes": 9999}
    with pytest.raises(ConfigError, match="alpha, beta feeds both"):
        collect(data_config(domains={"source": source, "reference": source | {"kind": "reference"}}))
