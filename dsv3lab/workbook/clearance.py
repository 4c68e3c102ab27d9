"""What a multi-node launch will ask for: which phases are promoted, by which records, on which hardware."""

from pathlib import Path

from dsv3lab.config import runs_dir
from dsv3lab.workbook import record as records
from dsv3lab.workbook.gates import Device, MetricsError, read_points
from dsv3lab.workbook.promotion import Promotion, read_chain


def launch_record(profile: str, device: Device, *, runs: Path | None = None) -> str:
    """The promoted records of `profile` as text, and whether they clear a launch on `device`.

    A launch on hardware K needs every blocking gate of every phase passed, not skipped, on K: a record made on another
    kind of device, or on fewer devices, clears nothing there.

    Args:
        profile: name of the profile; those that do not promote have no record here.
        device: hardware of the launch that is asked about.
        runs: the runs folder.
    """
    folder = runs_dir() if runs is None else runs
    newest = {promotion.phase: promotion for promotion in read_chain(folder) if promotion.profile == profile}
    lines, open_ = [], []
    for phase in ("phase1", "phase2", "phase3", "phase4"):
        if phase not in newest:
            lines.append(f"{phase}  not promoted with profile '{profile}' (yet)")
            open_.append(f"{phase} is not promoted")
            continue
        lines += _lines(newest[phase], folder)
        scope = newest[phase].scope
        if scope.kind != device.kind or scope.count < device.count:
            open_.append(f"{phase} was promoted on {scope.count} x {scope.kind}")
        open_ += [f"{phase}: gate {name} was skipped" for name in _skipped(newest[phase], folder)]
    verdict = "cleared" if not open_ else f"NOT cleared: {'; '.join(open_)}"
    return "\n".join([*lines, f"launch on {device.count} x {device.kind}: {verdict}"])


def last_values(path: Path) -> dict[str, float]:
    """The last value of every metric in a stage's `metrics.jsonl`.

    Raises:
        MetricsError: if the file is missing or holds something else.
    """
    if not path.is_file():
        raise MetricsError(f"{path}: missing; run the stage that writes it again")
    return {point.name: point.value for point in read_points(path)}


def _lines(promotion: Promotion, runs: Path) -> list[str]:
    record = records.read((runs / promotion.record).parent)
    passed = sum(result.status == "pass" for result in record.results)
    return [
        f"{promotion.phase}  {passed}/{len(record.results)} gates passed on {promotion.scope.count} x "
        f"{promotion.scope.kind}, {promotion.created}, revision {record.git.revision[:12] or 'unknown'}",
        f"        {promotion.record}",
        f"        SHA-256 {promotion.record_sha256}",
    ]


def _skipped(promotion: Promotion, runs: Path) -> list[str]:
    record = records.read((runs / promotion.record).parent)
    return [result.gate_id for result in record.results if result.status == "skipped" and result.severity == "block"]
