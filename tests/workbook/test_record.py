"""The record: complete, hashed, readable, and blocking what may not pass."""

import dataclasses
import json
import os
import re
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from dsv3lab.config import GateConfig, build
from dsv3lab.workbook import files, gates, inputs, promotion, record
from dsv3lab.workbook.gates import Device
from dsv3lab.workbook.record import StageOutcome
from tests.workbook import samples

H100 = Device(kind="NVIDIA H100", count=1)


def test_the_record_covers_every_file_and_reads_back(runs: Path) -> None:
    folder, written = samples.execution(runs, *samples.configuration(2), promote=False)
    assert set(written.files) == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {
        "record.json"
    }
    assert record.read(folder) == promotion.record_as_read(written)
    assert written.passed and written.scope == samples.CPU
    assert {"dsv3lab/workbook/record.py", "conf/phase/phase2.yaml"} <= set(written.inputs.code)
    assert "conf/phase/phase1.yaml" not in written.inputs.code
    assert {"pyproject.toml"} <= set(written.inputs.lock)
    assert written.environment.packages["jax"] != "absent"


def test_the_record_is_canonical_enough_to_be_equal_twice(runs: Path) -> None:
    folder, written = samples.execution(runs, *samples.configuration(1), promote=False)
    text = (folder / record.NAME).read_text()
    assert json.loads(text) == json.loads(json.dumps(json.loads(text), sort_keys=True))
    assert "NaN" not in text and text.endswith("}\n")


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 2}', "\x00"])
def test_what_is_not_a_record_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / record.NAME).write_text(text)
    with pytest.raises(record.RecordError, match=r"record\.json"):
        record.read(tmp_path)


def test_stages_and_gates_without_a_result_enter_as_not_passed() -> None:
    config, _ = samples.configuration(2)
    train = StageOutcome(name="train", status="ok", device=samples.CPU)
    outcomes = record.complete(config, [train])
    assert [outcome.name for outcome in outcomes] == list(config.phase.stages)
    assert outcomes[1].status == "not_run"
    results = [result for outcome in outcomes for result in outcome.results]
    assert {result.gate_id for result in results} == set(config.phase.gates)
    assert {result.status for result in results} == {"error"}
    with pytest.raises(record.RecordError, match="nonsense"):
        record.complete(config, [dataclasses.replace(train, name="nonsense")])


@pytest.mark.parametrize(
    "status", ["failed", "timeout", "dead_kernel", "no_kernel", "exited_early", "preempted", "not_run"]
)
def test_an_unfinished_stage_blocks(status: str) -> None:
    config, _ = samples.configuration(1)
    stages = [
        StageOutcome(name=name, status="ok", results=tuple(samples.passing(config, name)), device=samples.CPU)
        for name in config.phase.stages
    ]
    assert record.blockers(record.complete(config, stages), samples.CPU) == []
    stages[0] = dataclasses.replace(stages[0], status=cast(Any, status), error="first\nsecond")
    (reason,) = record.blockers(record.complete(config, stages), samples.CPU)
    assert status.replace("_", " ") in reason and "first" in reason and "second" not in reason


def outcome(
    status: str,
    *,
    device: str = "any",
    severity: str = "block",
    role: str = "error",
    ran_on: Device = samples.CPU,
    beside: str = "",
) -> list[str]:
    """The reasons against a stage with one gate of this status, and another of the status `beside` if one is given."""
    changes = {"requires": {"device": device, "count": 1}, "severity": severity, "role": role}
    gate = build(GateConfig, {**samples.GATE, **changes})
    result = gates.evaluate(gate, "g", points=[], executed=True, device=samples.CPU)
    statuses = (status, beside) if beside else (status,)
    results = tuple(dataclasses.replace(result, status=cast(Any, one)) for one in statuses)
    stage = StageOutcome(name="train", status="ok", results=results, device=ran_on)
    return record.blockers([stage], record.scope_of([stage]))


def test_which_results_block() -> None:
    assert outcome("pass") == outcome("waived") == []
    for status in ("fail", "error", "missing", "skipped"):
        assert outcome(status), status
        assert outcome(status, severity="warn") == []


def test_a_gate_for_a_gpu_does_not_block_a_cpu_promotion() -> None:
    assert outcome("skipped", device="gpu", role="other") == []
    assert outcome("skipped", device="cpu", role="other")
    assert outcome("fail", device="gpu", role="other")
    assert outcome("skipped", device="cpu", role="other", ran_on=H100) == []


@pytest.mark.parametrize("role", ["throughput", "loss", "error"])
def test_a_stage_whose_gates_are_all_for_other_devices_blocks(role: str) -> None:
    (reason,) = outcome("skipped", device="cpu", role=role, ran_on=H100)
    assert re.search(r"stage train: no .*gate was judged on NVIDIA H100: g is for cpu", reason) and role in reason
    assert outcome("skipped", device="cpu", role=role, ran_on=H100, beside="pass") == []
    assert outcome("skipped", device="cpu", role=role, ran_on=H100, beside="waived") == []
    assert outcome("skipped", device="cpu", role=role, ran_on=H100, beside="skipped")


def test_a_scope_that_nobody_names_blocks() -> None:
    assert any("what they ran on" in reason for reason in outcome("pass", ran_on=Device()))
    mixed = [StageOutcome(name=k, status="ok", device=Device(kind=k, count=1)) for k in ("cpu", "NVIDIA H100")]
    assert record.scope_of(mixed).platform == "unknown"


def test_changes_name_each_file() -> None:
    assert inputs.changes({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == ["a deleted", "b changed", "c added"]


def test_inputs_follow_code_and_notebooks_of_the_phase_only(tmp_path: Path) -> None:
    for name in (
        "dsv3lab/a.py",
        "conf/gates/phase1.yaml",
        "conf/gates/phase2.yaml",
        "conf/waivers.yaml",
        "conf/baselines/phase2.yaml",
        "pipelines/all.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in ("notebooks/phase1_components/01.ipynb", "notebooks/phase2_integration/01.ipynb", "constraints.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "dsv3lab" / "__pycache__").mkdir()
    (tmp_path / "dsv3lab" / "__pycache__" / "b.py").write_text("x")
    found = inputs.read_inputs(2, tmp_path)
    assert set(found.code) == {
        "dsv3lab/a.py",
        "conf/gates/phase2.yaml",
        "pipelines/all.py",
        "notebooks/phase2_integration/01.ipynb",
    }
    assert set(found.lock) == {"constraints.txt"}
    assert inputs.read_git(tmp_path) == inputs.Git(revision="", dirty=False)


def test_writes_are_atomic_and_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    files.write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_line_that_does_not_fit_is_taken_back_and_its_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "metrics.jsonl", os.write
    files.append_line(path, "first")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", lambda handle, data: write(handle, data[:4]))
        with pytest.raises(OSError, match=r"4 of 7 bytes.*metrics\.jsonl"):
            files.append_line(path, "second")
        patch.setattr(files.os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"No space left.*metrics\.jsonl"):
            files.append_line(path, "second")
    assert path.read_text() == "first\n"
    files.append_line(path, "third")
    assert path.read_text() == "first\nthird\n"


def test_a_file_that_is_replaced_all_the_time_does_not_disturb_the_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            files.write_atomic(tmp_path / "tracking.json", "{}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert set(files.hash_folder(tmp_path, leave_out=frozenset({"tracking.json"}))) == {"a"}
    finally:
        ended.set()
        writer.join()


def test_what_a_kill_leaves_of_a_replacement_is_no_part_of_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("a")
    listed = files.hash_folder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            files.write_atomic(tmp_path / "promotion.json", "{}")
    assert len(list(tmp_path.iterdir())) == 2
    assert files.compare(tmp_path, listed) == []
    for name in ("a.tmp", ".a.tmp", ".a.0123456.tmp", "a.01234567.tmp"):  # names of somebody else's files
        (tmp_path / name).write_text("")
        assert files.compare(tmp_path, listed) == [(tmp_path / name, "added")]
        (tmp_path / name).unlink()


def test_caches_of_jupyter_are_no_part_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    listed = files.hash_folder(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a").write_text("a")
    assert files.compare(tmp_path, listed) == []
    (tmp_path / "link").symlink_to("a")
    assert files.compare(tmp_path, listed) == [(tmp_path / "link", "added")]
