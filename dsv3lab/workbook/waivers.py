"""Waivers: a file in git that lets a failed or skipped gate through, with a reason and an end.

`conf/waivers.yaml` holds `waivers:`, a list of `{gate: phase2/<id>, reason, by, created, expires, scope}`; dates are
`YYYY-MM-DD`, scope is `any`, `cpu` or `gpu`. A gate that erred or never ran cannot be waived. A pipeline refuses to start
on a waiver without a reason, for a gate that there is not, out of its dates, or not committed (`refuse`).
"""

import dataclasses
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dsv3lab.config import CONF, ConfigError, build, nearest
from dsv3lab.config.run import read_yaml
from dsv3lab.workbook.inputs import uncommitted

if TYPE_CHECKING:  # gates applies waivers, so this module only names its types
    from dsv3lab.workbook.gates import Device, GateResult


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """One gate let through."""

    gate: str
    """`phaseN/<gate id>`."""
    reason: str
    by: str
    created: str
    expires: str
    """The last day on which it holds."""
    scope: Literal["any", "cpu", "gpu"]
    """The device kind of the promotion that it is good for."""

    def __post_init__(self) -> None:
        if not self.reason.strip() or not self.by.strip():
            raise ConfigError(f"waiver of '{self.gate}': give a reason and a name in 'by'")
        if not re.fullmatch(r"phase[1-4]/[^/]+", self.gate):
            raise ConfigError(f"waiver of '{self.gate}': name the gate as phaseN/<gate id>")
        if _day(self, "expires") < _day(self, "created"):
            raise ConfigError(f"waiver of '{self.gate}': it expires before it was created")

    def holds(self, device: "Device", today: date) -> bool:
        """Whether it counts today for a promotion on `device`."""
        return _day(self, "created") <= today <= _day(self, "expires") and self.scope in ("any", device.platform)

    @property
    def text(self) -> str:
        """What a gate that it lets through says."""
        return f"waived by {self.by} until {self.expires}: {self.reason}"


def load(path: Path = CONF / "waivers.yaml", *, phase: str) -> list[Waiver]:
    """The waivers of one phase, expired ones included (they are shown, and do not count); none without the file.

    Raises:
        ConfigError: for a waiver without a reason, an owner or readable dates.
    """
    if not path.exists():
        return []
    content = read_yaml(path)
    entries = content.get("waivers")
    if set(content) != {"waivers"} or not isinstance(entries, list):
        raise ConfigError(f"{path}: expected one key 'waivers' with a list")
    dated = [
        {k: v.isoformat() if isinstance(v, date) else v for k, v in e.items()} if isinstance(e, dict) else e
        for e in entries
    ]
    waivers = [build(Waiver, entry, path=f"{path.name}[{i}]") for i, entry in enumerate(dated)]
    return [waiver for waiver in waivers if waiver.gate.startswith(f"{phase}/")]


def refuse(waivers: Sequence[Waiver], path: Path, *, gates: Collection[str], today: date | None = None) -> None:
    """Refuse waivers of one phase that do not count, before anything runs.

    Args:
        waivers: those of the phase, as `load` reads them.
        path: the file they are from.
        gates: the ids of the phase's gates.
        today: the day on which they must hold.

    Raises:
        ConfigError: for a gate that there is not, an end or a beginning that is not now, or a file that is not committed.
    """
    today = today or datetime.now(UTC).date()
    for waiver in waivers:
        gate_id = waiver.gate.split("/", 1)[1]
        if gate_id not in gates:
            raise ConfigError(f"{path}: waiver of '{waiver.gate}': there is no such gate{nearest(gate_id, gates)}")
        if today > _day(waiver, "expires"):
            raise ConfigError(f"{path}: waiver of '{waiver.gate}': expired on {waiver.expires}; remove or renew it")
        if today < _day(waiver, "created"):
            raise ConfigError(f"{path}: waiver of '{waiver.gate}': created on {waiver.created}, which is yet to come")
    if waivers and uncommitted(path.parent, path.name, ignored=True):
        raise ConfigError(f"{path}: not committed; a waiver counts only as a file in git: commit it, or take it back")


def ended(results: Sequence["GateResult"], today: date | None = None) -> list[str]:
    """One line for each of `results` that was let through by a waiver whose last day is over."""
    today = today or datetime.now(UTC).date()
    lines = []
    for result in results:
        last = re.match(r"waived by .*? until (\d{4}-\d\d-\d\d): ", result.waiver)  # as `Waiver.text` says it
        if last and today > date.fromisoformat(last[1]):
            lines.append(f"gate {result.gate_id}: its waiver ended on {last[1]}")
    return lines


def apply(
    results: Sequence["GateResult"], waivers: Sequence[Waiver], *, device: "Device", today: date | None = None
) -> list["GateResult"]:
    """`results` with failed and skipped gates marked waived where a waiver holds; an expired one is mentioned."""
    today = today or datetime.now(UTC).date()
    return [_applied(result, waivers, device=device, today=today) for result in results]


def _applied(result: "GateResult", waivers: Sequence[Waiver], *, device: "Device", today: date) -> "GateResult":
    mine = [w for w in waivers if w.gate.split("/", 1)[1] == result.gate_id]
    if result.status not in ("fail", "skipped") or not mine:
        return result
    for waiver in mine:
        if waiver.holds(device, today):
            return dataclasses.replace(result, status="waived", waiver=waiver.text)
    why = f"its waiver by {mine[-1].by} does not hold (until {mine[-1].expires}, scope {mine[-1].scope})"
    return dataclasses.replace(result, message=f"{result.message}; {why}")


def _day(waiver: Waiver, field: str) -> date:
    text = getattr(waiver, field)
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"waiver of '{waiver.gate}': {field} '{text}' is not a date YYYY-MM-DD") from None
