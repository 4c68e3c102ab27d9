"""What clears a launch: every phase promoted on that hardware, by gates that passed, on records that still stand."""

import dataclasses
from pathlib import Path
from typing import cast

import pytest

from dsv3lab.workbook import chain as chains
from dsv3lab.workbook import gates, promotion, record
from dsv3lab.workbook.clearance import launch_record
from dsv3lab.workbook.gates import Device
from tests.workbook import samples


def verdict(runs: Path, device: Device = samples.CPU) -> str:
    return launch_record("default", device, runs=runs).splitlines()[-1]


def promote_all(runs: Path) -> list[Path]:
    folders = []
    for number in (1, 2, 3, 4):
        config, resolved = samples.configuration(number)
        folders.append(samples.execution(runs, config, resolved, upstream=promotion.ground(config, runs).upstream)[0])
    return folders


def test_four_promoted_phases_clear_their_own_hardware_only(runs: Path) -> None:
    first, *_ = promote_all(runs)
    assert verdict(runs) == "launch on 8 x cpu: cleared"
    text = launch_record("default", Device(kind="NVIDIA H100", count=8), runs=runs)
    assert text.count("was promoted on 8 x cpu") == 4 and record.sha256(first) in text
    assert "phase1 was promoted on 8 x cpu" in verdict(runs, Device(kind="cpu", count=9))


def test_a_phase_that_is_not_promoted_is_named(runs: Path) -> None:
    samples.two_phases(runs)
    text = launch_record("default", samples.CPU, runs=runs)
    assert "phase3  not promoted with profile 'default' (yet)" in text
    assert text.endswith("NOT cleared: phase3 is not promoted; phase4 is not promoted")


@pytest.mark.parametrize(
    ("status", "device", "listed"), [("skipped", "tpu", True), ("waived", "gpu", True), ("skipped", "gpu", False)]
)
def test_a_gate_that_did_not_pass_is_listed_unless_a_cluster_of_cpus_cannot_pass_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch, status: str, device: str, listed: bool
) -> None:
    passing = samples.passing

    def let_through(*arguments: object) -> list[gates.GateResult]:
        first, *others = passing(*arguments)  # type: ignore[arg-type]
        changed = dataclasses.replace(first, status=cast(gates.Status, status), requires_device=device, role="other")
        return [changed, *others]

    monkeypatch.setattr(samples, "passing", let_through)
    promote_all(runs)
    gate = next(iter(record.read(next(runs.glob("phase4/*"))).results))
    assert gate.status == status and gate.severity == "block"
    assert (f"phase4: gate {gate.gate_id} was {status}" in verdict(runs)) == listed
    h100 = verdict(runs, Device(kind="NVIDIA H100", count=8))
    assert f"phase4: gate {gate.gate_id} was {status}" in h100 and "phase3: gate dp_scaling was skipped" in h100


def test_a_record_on_which_nobody_may_build_clears_nothing(runs: Path) -> None:
    _, _, third, _ = promote_all(runs)
    listed = third / "report.html"
    before = listed.read_bytes()
    listed.write_bytes(b"other")
    assert f"{listed}: changed since phase3 was recorded" in verdict(runs)
    listed.write_bytes(before)
    (third / record.NAME).write_bytes((third / record.NAME).read_bytes() + b" ")
    assert f"{third / record.NAME}: changed since it was promoted" in verdict(runs)


def test_a_record_below_that_was_promoted_anew_clears_nothing(runs: Path) -> None:
    promote_all(runs)
    config, resolved = samples.configuration(2)
    samples.execution(runs, config, resolved, upstream=promotion.ground(config, runs).upstream)
    assert "phase3 was built on an older promotion of phase2" in verdict(runs)


def test_a_damaged_chain_clears_nothing(runs: Path) -> None:
    promote_all(runs)
    (runs / chains.HEAD).write_text("{}")
    assert "NOT cleared" in verdict(runs) and "promotions.head" in verdict(runs)
