from pathlib import Path

import pytest
import yaml

from dsv3lab.config import CONF, DataConfig, build, read_yaml
from dsv3lab.data import compare
from dsv3lab.data.__main__ import main
from dsv3lab.data.digests import DIGESTS, python_version, versions, write
from tests.data.packages import data_config, install, prose, two_packages


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    two_packages(tmp_path, monkeypatch)
    return tmp_path


def test_a_digest_is_committed_different_or_unknown(site: Path):
    path = site / "digests.yaml"
    config = data_config()
    assert compare(config, "a" * 64, path=path).status == "unknown"
    write(config, "a" * 64, path=path)
    assert compare(config, "a" * 64, path=path).status == "committed"
    assert "a file differs" in compare(config, "b" * 64, path=path).message
    install(site, "beta", {"beta/m0.py": prose(1)}, version="2.0")
    (site / "beta-1.0.dist-info/RECORD").unlink()
    (site / "beta-1.0.dist-info/METADATA").unlink()
    (site / "beta-1.0.dist-info").rmdir()
    different = compare(config, "b" * 64, path=path)
    assert different.status == "different" and "beta 2.0 (pinned 1.0)" in different.message
    entries = read_yaml(path)
    path.write_text(yaml.dump({"tiny": {"2.7": entries["tiny"][python_version()]}}))
    unknown = compare(config, "a" * 64, path=path)
    assert unknown.status == "unknown" and f"Python {python_version()}" in unknown.message and "2.7" in unknown.message


def test_every_corpus_has_a_digest_for_every_supported_python_and_its_packages():
    committed = read_yaml(DIGESTS)
    configurations = {path.stem: read_yaml(path) for path in sorted((CONF / "data").glob("*.yaml"))}
    assert sorted(committed) == sorted(configurations) == sorted(values["name"] for values in configurations.values())
    for name, values in configurations.items():
        config = build(DataConfig, values, path=f"data={name}")
        assert sorted(committed[name]) == ["3.11", "3.12", "3.13"]
        for entry in committed[name].values():
            assert sorted(entry["versions"]) == sorted(versions(config)) and len(entry["digest"]) == 64


def test_the_pinned_packages_give_the_committed_digest(capsys: pytest.CaptureFixture):
    config = build(DataConfig, read_yaml(CONF / "data" / "ci.yaml"), path="data")
    entry = read_yaml(DIGESTS)["ci"].get(python_version())
    assert main(["--digest", "--config", str(CONF / "data" / "ci.yaml")]) == 0
    digest, message = capsys.readouterr().out.splitlines()
    if entry is None:
        assert f"unknown on Python {python_version()}" in message
    elif versions(config) == entry["versions"]:
        assert digest == entry["digest"] and "as committed" in message
    else:
        assert "other versions are installed" in message


def test_the_command_prepares_and_prints_the_folder_last(site: Path, capsys: pytest.CaptureFixture):
    path = site / "resolved.yaml"
    values = read_yaml(CONF / "data" / "ci.yaml")
    domain = {
        "kind": "source",
        "weight": 1.0,
        "packages": ["alpha", "beta"],
        "validation": ["beta"],
        "max_bytes": 10**6,
    }
    values |= {"name": "tiny", "min_document_bytes": 1, "sequence_length": 8, "domains": {"source": domain}}
    path.write_text(yaml.dump({"data": values, "model": {}}))
    assert main(["--config", str(path), "--root", str(site / "root")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert (Path(printed[-1]) / "manifest.json").exists() and all(line.startswith("data ") for line in printed[:-1])


def test_the_command_ends_with_2_and_one_line_on_an_error(site: Path, capsys: pytest.CaptureFixture):
    assert main(["--config", str(site / "missing.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit, match="2"):
        main(["--write"])
