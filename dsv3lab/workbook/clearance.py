"""What a multi-node launch will ask for: which phases are promoted, by which records, on which hardware."""

from pathlib import Path

from dsv3lab.config import runs_dir
from dsv3lab.workbook.chain import Promotion
from dsv3lab.workbook.gates import Device, MetricsError, read_points
from dsv3lab.workbook.promotion import Newest, UpstreamError
from dsv3lab.workbook.record import PhaseRecord


def launch_record(profile: str, device: Device, *, runs: Path | None = None) -> str:
    """The promoted records of `profile` as text, and whether they clear a launch on `device`.

    A launch on hardware K needs every blocking gate of every phase passed, neither skipped nor waived, on K: a record
    made on another kind of device, or on fewer devices, clears nothing there; on a cluster of CPUs, where one tries things
    out, gates for a GPU are not asked for. Nor does one on which a later phase might
    not build: changed since, stale, or made before the newest promotion below it.

    Args:
        profile: name of the profile; those that do not promote have no record here.
        device: hardware of the launch that is asked about.
        runs: the runs folder.
    """
    where = f"launch on {device.count} x {device.kind}"
    try:
        newest = Newest(profile, promotes=True, runs=runs_dir() if runs is None else runs)
    except UpstreamError as error:  # a chain that is not intact clears nothing
        return f"{where}: NOT cleared: {error}"
    lines: list[str] = []
    against: list[str] = []
    for number in (1, 2, 3, 4):
        promotion = newest.promotions.get(f"phase{number}")
        if promotion is None:
            lines.append(f"phase{number}  not promoted with profile '{profile}' (yet)")
            against.append(f"phase{number} is not promoted")
            continue
        try:
            record = newest.find(number).record
        except UpstreamError as error:
            lines.append(f"phase{number}  {error}")
            against.append(str(error))
            continue
        lines += _lines(promotion, record)
        against += _against(newest, number, promotion, record, device)
    verdict = "cleared" if not against else f"NOT cleared: {'; '.join(against)}"
    return "\n".join([*lines, f"{where}: {verdict}"])


def last_values(path: Path) -> dict[str, float]:
    """The last value of every metric in a stage's `metrics.jsonl`.

    Raises:
        MetricsError: if the file is missing or holds something else.
    """
    if not path.is_file():
        raise MetricsError(f"{path}: missing; run the stage that writes it again")
    return {point.name: point.value for point in read_points(path)}


def _lines(promotion: Promotion, record: PhaseRecord) -> list[str]:
    passed = sum(result.status == "pass" for result in record.results)
    return [
        f"{promotion.phase}  {passed}/{len(record.results)} gates passed on {promotion.scope.count} x "
        f"{promotion.scope.kind}, {promotion.created}, revision {record.git.revision[:12] or 'unknown'}",
        f"        {promotion.record}",
        f"        SHA-256 {promotion.record_sha256}",
    ]


def _against(newest: Newest, number: int, promotion: Promotion, record: PhaseRecord, device: Device) -> list[str]:
    """Why a promoted record does not clear a launch on `device`."""
    reasons, scope = [], promotion.scope
    if scope.kind != device.kind or scope.count < device.count:
        reasons.append(f"{promotion.phase} was promoted on {scope.count} x {scope.kind}")
    for result in record.results:
        for_gpu = result.status == "skipped" and result.requires_device == "gpu" and device.platform == "cpu"
        if result.severity == "block" and result.status != "pass" and not for_gpu:
            reasons.append(f"{promotion.phase}: gate {result.gate_id} was {result.status}")
    try:
        newest.check(number)
    except UpstreamError as error:
        reasons.append(str(error))
    return reasons
