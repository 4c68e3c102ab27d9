"""`dsv3lab verify` names every file that is no longer what was recorded."""

import json
import shutil
from pathlib import Path

import pytest

from dsv3lab.config import canonical
from dsv3lab.workbook import chain as chains
from dsv3lab.workbook import inputs, promotion, record, verify
from dsv3lab.workbook.files import sha256_file
from tests.workbook import samples


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with two promoted phases."""
    folder = tmp_path_factory.mktemp("promoted")
    runs = folder / "runs"
    runs.mkdir()
    samples.two_phases(runs)
    return runs


@pytest.fixture
def copy(promoted: Path, tmp_path: Path) -> Path:
    """A copy of it, elsewhere: records hold when the runs folder moves."""
    shutil.copytree(promoted, tmp_path / "moved")
    return tmp_path / "moved"


def recorded(runs: Path) -> list[Path]:
    """Everything that verify answers for."""
    ignored = {".promotions.lock"}
    return sorted(path for path in runs.rglob("*") if path.is_file() and path.name not in ignored)


def findings(runs: Path) -> list[str]:
    found = verify.check_integrity(runs)
    assert found.intact == (not found.problems)
    return found.problems


def named(runs: Path, path: Path) -> bool:
    return any(problem.startswith(f"{path}:") for problem in findings(runs))


def test_untouched_is_intact(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(copy)]) == 0
    text = capsys.readouterr().out
    assert "intact" in text and "2 promotions, 2 records" in text


def test_a_flipped_byte_in_any_file_is_named(copy: Path) -> None:
    for path in recorded(copy):
        before = path.read_bytes()
        for place in {0, len(before) // 2, len(before) - 1}:
            path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
            assert named(copy, path), f"{path.relative_to(copy)} at byte {place}"
        path.write_bytes(before)
    assert findings(copy) == []


def test_no_byte_of_a_promoted_path_leads_elsewhere(copy: Path) -> None:
    chain = copy / chains.CHAIN
    before = chain.read_bytes()
    start = before.index(b'"record":"') + len(b'"record":"')
    for place in range(start, before.index(b'"', start)):
        for byte in (b"/", b".", b"\0"):
            if before[place : place + 1] != byte:
                chain.write_bytes(before[:place] + byte + before[place + 1 :])
                assert named(copy, chain), (place, byte)


def test_a_deleted_file_is_named(copy: Path) -> None:
    for path in recorded(copy):
        before = path.read_bytes()
        path.unlink()
        assert named(copy, path), path.relative_to(copy)
        path.write_bytes(before)
    assert findings(copy) == []


def test_an_added_file_is_named(copy: Path) -> None:
    for folder in {path.parent for path in recorded(copy) if path.parent != copy}:
        extra = folder / "extra.txt"
        extra.write_text("")
        assert named(copy, extra), extra.relative_to(copy)
        extra.unlink()
    assert findings(copy) == []


def test_files_outside_the_hashes_do_not_matter(copy: Path) -> None:
    folder = next(copy.glob("phase1/*"))
    (folder / "tracking.json").write_text("{}")
    (folder / "mla" / ".ipynb_checkpoints").mkdir()
    (folder / "mla" / ".ipynb_checkpoints" / "x.ipynb").write_text("{}")
    assert findings(copy) == []


def test_a_cut_last_line_is_named(copy: Path) -> None:
    chain = copy / chains.CHAIN
    lines = chain.read_text().splitlines(keepends=True)
    chain.write_text(lines[0])
    assert named(copy, chain) and "cut" in "".join(findings(copy))


def test_a_cut_of_line_and_head_together_is_named(copy: Path) -> None:
    lines = (copy / chains.CHAIN).read_text().splitlines(keepends=True)
    (copy / chains.CHAIN).write_text(lines[0])
    first = chains.check_chain(copy)[0][0]
    (copy / chains.HEAD).write_text(canonical({"count": 1, "sha256": first.sha256}) + "\n")
    assert chains.check_chain(copy)[1] == []
    assert named(copy, next(copy.glob("phase2/*")) / chains.NAME)


def test_chain_and_head_gone_are_named(copy: Path) -> None:
    (copy / chains.CHAIN).unlink()
    (copy / chains.HEAD).unlink()
    assert all(named(copy, folder / chains.NAME) for folder in copy.glob("phase*/*"))


def test_a_forged_record_is_named_although_its_folder_agrees(copy: Path) -> None:
    folder = next(copy.glob("phase1/*"))
    content = json.loads((folder / record.NAME).read_text())
    content["stages"][0]["results"][0]["observed"] = 0.0
    (folder / record.NAME).write_text(json.dumps(content))
    assert named(copy, folder / record.NAME)


def test_a_folder_that_vanished_is_named(copy: Path) -> None:
    folder = next(copy.glob("phase2/*"))
    shutil.rmtree(folder)
    assert named(copy, folder / record.NAME)


def test_a_manifest_that_was_rewritten_with_its_shard_is_named(copy: Path) -> None:
    folder = next(copy.glob("data/*"))
    (folder / "train.bin").write_bytes(b"other")
    content = json.loads((folder / "manifest.json").read_text())
    content["files"]["train.bin"] = sha256_file(folder / "train.bin")
    (folder / "manifest.json").write_text(json.dumps(content))
    assert named(copy, folder / "manifest.json")


def test_staleness_is_a_verdict_of_its_own(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = inputs.read_inputs
    monkeypatch.setattr(
        promotion, "read_inputs", lambda phase: inputs.Inputs(code=now(phase).code | {"dsv3lab/new.py": "0"}, lock={})
    )
    found = verify.verify(copy)
    assert found.intact and set(found.stale) == {"phase1 (default)", "phase2 (default)"}
    assert "dsv3lab/new.py added" in found.stale["phase1 (default)"]
    assert "pyproject.toml deleted" in found.stale["phase1 (default)"]
    assert verify.main([str(copy)]) == 0 and verify.main([str(copy), "--strict"]) == 1
    assert "stale: phase1 (default)" in capsys.readouterr().out


def test_exit_statuses_and_json(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["intact"] is True
    victim = next(copy.glob("phase1/*/mla/checkpoint/weights.bin"))
    victim.write_bytes(b"x")
    assert verify.main([str(copy), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == [f"{victim}: changed"]
    assert verify.main([str(copy / "nowhere")]) == 2
    assert verify.main(["--nonsense"]) == 2


def test_a_run_without_a_record_is_mentioned_only(copy: Path) -> None:
    (copy / "phase3" / "killed").mkdir(parents=True)
    found = verify.verify(copy)
    assert found.intact and found.unfinished == [str(copy / "phase3" / "killed")]
