"""`dsv3lab compare A B …`: runs or stages side by side: metrics, gates, configuration, environment.

The first side is what the others are compared with: differences and ratios are theirs to it.
"""

import argparse
import json
import math
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv3lab.config import ConfigError, diff, runs_dir
from dsv3lab.config.build import build
from dsv3lab.config.workbook import GateConfig
from dsv3lab.workbook import gates
from dsv3lab.workbook.sides import Side, find, read_points, stage_json
from dsv3lab.workbook.tables import grid
from dsv3lab.workbook.verdict import figure

PARTS = ("metrics", "gates", "config", "environment")
EXAMPLE = "example: dsv3lab compare phase2/promoted phase2/last --only metrics"

_UNITS = (
    (r"tokens_per_s$", "tokens/s"),
    (r"(^|_|/)flops$", "FLOP/s"),
    (r"(fraction|ratio|share|speedup|maxvio|perplexity)", ""),
    (r"bytes_per_step$", "bytes/step"),
    (r"bits_per_byte|^eval/reference/", "bits/byte"),
    (r"(^|_|/)bytes$", "bytes"),
    (r"_s$", "s"),
    (r"^(train|validation|quality)/(mtp_)?loss(/|$)|^train/total$", "nats/token"),
    (r"^train/tokens$", "tokens"),
)
"""Units of metrics that no gate names, by the form of their names."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric over all sides."""

    stage: str
    name: str
    unit: str
    values: tuple[Any, ...]
    """The last value on each side; `None` where it was not logged."""

    @property
    def differences(self) -> tuple[float | None, ...]:
        """Each side's value less the first one's."""
        return tuple(self._against_first(lambda value, first: value - first))

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Each side's value over the first one's."""
        return tuple(self._against_first(lambda value, first: value / first if first else None))

    def _against_first(self, how: Any) -> list[float | None]:
        first, *others = (gates.number(value) for value in self.values)
        found = [how(value, first) if value is not None and first is not None else None for value in others]
        return [None, *(gates.number(value) for value in found)]


def main(argv: list[str]) -> int:
    """Entry point of `dsv3lab compare`: 0 if there was something to show, 2 for a name that names nothing."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab compare",
        description="Show runs or stages side by side; differences and ratios are to the first one.",
        epilog=EXAMPLE,
    )
    parser.add_argument(
        "sides",
        nargs="+",
        metavar="SIDE",
        help="phase2/<run>, phase2/last, phase2/promoted, each with /<stage> behind it if only that is meant, or a folder",
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; can be repeated (default: all)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args(argv)
    if len(args.sides) < 2:
        raise ConfigError(f"name at least two runs or stages; {EXAMPLE}")
    sides = find(args.sides, runs_dir())
    parts = [part for part in PARTS if part in (args.only or PARTS)]
    if args.json:
        print(json.dumps(as_data(sides, parts), indent=1, allow_nan=False))
    else:
        print(as_text(sides, parts, width=shutil.get_terminal_size((120, 24)).columns))
    return 0


def metric_rows(sides: Sequence[Side]) -> list[Row]:
    """Every metric that a side has logged, by stage and in the order of writing."""
    alone = all(side.single for side in sides)
    columns: list[dict[tuple[str, str], Any]] = []
    units: dict[tuple[str, str], str] = {}
    for side in sides:
        column: dict[tuple[str, str], Any] = {}
        for stage, folder in side.stages.items():
            named = {gate.metric: gate.unit for gate in gates.stage_gates(_gates(side), stage).values()}
            for point in read_points(folder):
                name = point.name
                key = ("" if alone else stage, name)
                column[key] = point.value
                units.setdefault(key, named[name] if name in named else unit(name))
        columns.append(column)
    stages = dict.fromkeys(stage for column in columns for stage, _ in column)
    keys = [key for stage in stages for key in units if key[0] == stage]
    return [
        Row(stage=stage, name=name, unit=units[stage, name], values=tuple(c.get((stage, name)) for c in columns))
        for stage, name in keys
    ]


def unit(metric: str) -> str:
    """The unit of a metric that no gate names; nothing for a number without one, or one that is not known."""
    return next((text for pattern, text in _UNITS if re.search(pattern, metric)), "")


def gate_rows(sides: Sequence[Side]) -> dict[str, list[dict[str, Any] | None]]:
    """Gate -> on each side what was observed, the bound and the status; `None` where the side has no such gate.

    A side without a record is judged here, by its own configuration and on what it has written so far.
    """
    judged = [_judge(side) for side in sides]
    return {
        gate_id: [side.get(gate_id) for side in judged] for gate_id in dict.fromkeys(g for side in judged for g in side)
    }


def config_rows(sides: Sequence[Side]) -> dict[str, list[Any]]:
    """The keys on which the resolved configurations differ -> the value on each side."""
    first, *others = (side.config for side in sides)
    against = [diff(first, other) for other in others]
    keys = sorted(set().union(*against))
    return {key: [_leaf(side.config, key) for side in sides] for key in keys}


def environment_rows(sides: Sequence[Side]) -> dict[str, list[str]]:
    """What each side ran on and from: device, versions, host, variables, revision, times."""
    columns = [_environment(side) for side in sides]
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, "–") for column in columns] for name in names}


def as_data(sides: Sequence[Side], parts: Sequence[str]) -> dict[str, Any]:
    """The comparison as JSON values; numbers that are not finite are "nan", "inf" and "-inf"."""
    data: dict[str, Any] = {
        "sides": [{"name": s.name, "folder": str(s.folder), "complete": s.complete, "state": s.state} for s in sides]
    }
    if "metrics" in parts:
        data["metrics"] = [
            {
                "stage": row.stage,
                "name": row.name,
                "unit": row.unit,
                "values": [_finite(value) for value in row.values],
                "differences": list(row.differences),
                "ratios": list(row.ratios),
            }
            for row in metric_rows(sides)
        ]
    rows = {"gates": gate_rows, "config": config_rows, "environment": environment_rows}
    return data | {part: rows[part](sides) for part in parts if part in rows}


def as_text(sides: Sequence[Side], parts: Sequence[str], *, width: int) -> str:
    """The comparison as tables for a terminal of `width` columns."""
    letters = [chr(ord("A") + index) for index in range(len(sides))]
    lines = [f"{letter}  {side.name}\n   {side.state}" for letter, side in zip(letters, sides, strict=True)]
    show = {"metrics": _metrics, "gates": _gate_table, "config": _config, "environment": _environment_table}
    for part in parts:
        lines += ["", part, *show[part](sides, letters, width)]
    return "\n".join(lines)


def _metrics(sides: Sequence[Side], letters: Sequence[str], width: int) -> list[str]:
    rows = metric_rows(sides)
    if not rows:
        return ["  nothing was logged"]
    together = max(1, (width - 54) // 34)  # sides that fit beside the first
    lines: list[str] = []
    for start in range(1, len(sides), together):
        shown = range(start, min(start + together, len(sides)))
        header = ["metric", "unit", letters[0]]
        for index in shown:
            header += [letters[index], f"{letters[index]} - {letters[0]}", f"{letters[index]} / {letters[0]}"]
        cells: list[list[str]] = []
        stage = ""
        for row in rows:
            if row.stage != stage:
                stage = row.stage
                cells.append([f"[{stage}]", *[""] * (len(header) - 1)])
            line = [row.name, row.unit, _value(row.values[0])]
            for index in shown:
                line += [_value(row.values[index]), figure(row.differences[index]), figure(row.ratios[index])]
            cells.append(line)
        lines += ([""] if lines else []) + grid(header, cells, left=(0, 1), first=(1,), width=width)
    return lines


def _gate_table(sides: Sequence[Side], letters: Sequence[str], width: int) -> list[str]:
    found = gate_rows(sides)
    if not found:
        return ["  no gates"]
    cells = []
    for gate_id, judged in found.items():
        bounds = [f"{one['op']} {figure(one['threshold'])}" if one else "" for one in judged]
        common = next(bound for bound in bounds if bound)
        line = [gate_id, common]
        for one, bound in zip(judged, bounds, strict=True):
            other = f" ({bound})" if one and bound != common else ""
            line.append(f"{figure(one['observed'])} {one['status']}{other}" if one else "–")
        cells.append(line)
    lines = grid(["gate", "bound", *letters], cells, left=(0, 1, *range(2, 2 + len(sides))), width=width)
    preview = [letter for letter, side in zip(letters, sides, strict=True) if side.record is None]
    return lines + ([f"{', '.join(preview)}: a preview; nothing is recorded yet"] if preview else [])


def _config(sides: Sequence[Side], letters: Sequence[str], width: int) -> list[str]:
    rows = config_rows(sides)
    if not rows:
        return ["  the same in all"]
    cells = [[key, *(_shown(value) for value in values)] for key, values in rows.items()]
    return grid(["key", *letters], cells, left=range(1 + len(sides)), width=width)


def _environment_table(sides: Sequence[Side], letters: Sequence[str], width: int) -> list[str]:
    rows = environment_rows(sides)
    other = {name: values for name, values in rows.items() if len(set(values)) > 1}
    cells = [[name, *values] for name, values in other.items()]
    lines = grid(["", *letters], cells, left=range(1 + len(sides)), width=width) if cells else []
    same = ", ".join(f"{name} {values[0]}" for name, values in rows.items() if name not in other)
    return lines + (textwrap.wrap(f"the same in all: {same}", width=width) if same else [])


def _gates(side: Side) -> dict[str, GateConfig]:
    """The gates of a side's configuration; those of another version's form are left out."""
    found = {}
    for gate_id, mapping in side.config.get("phase", {}).get("gates", {}).items():
        try:
            found[str(gate_id)] = build(GateConfig, mapping)
        except ConfigError:
            continue
    return found


def _judge(side: Side) -> dict[str, dict[str, Any]]:
    results = [result for outcome in side.outcomes for result in outcome.results]
    running: list[str] = []
    if side.record is None:
        configured = _gates(side)
        for stage, folder in side.stages.items():
            told = stage_json(folder)
            device = told.get("device") or {}
            running += [] if told.get("status") == "closed" else [stage]
            results += gates.evaluate_stage(
                gates.stage_gates(configured, stage),
                read_points(folder),
                executed=told.get("status") == "closed",
                device=gates.Device(kind=str(device.get("kind", "unknown")), count=int(device.get("count", 0))),
            )
    return {
        result.gate_id: {
            "observed": result.observed,
            "op": result.op,
            "threshold": result.threshold,
            "unit": result.unit,
            "status": "not yet" if result.stage in running else result.status,
        }
        for result in results
    }


def _environment(side: Side) -> dict[str, str]:
    told = [value for value in map(stage_json, side.stages.values()) if value]
    devices = dict.fromkeys(f"{v['device']['count']} x {v['device']['kind']}" for v in told if v.get("device"))
    found = {"device": ", ".join(devices) or "not known yet"}
    record = side.record
    if record is None:
        return found | {str(k): str(v) for value in told for k, v in value.get("versions", {}).items()}
    environment = record.environment
    return {
        **found,
        "python": environment.python,
        **environment.packages,
        "host": environment.host,
        "variables": environment.settings,
        "git revision": str(record.git),
        "started": record.started[:19].replace("T", " "),
        "ended": record.ended[:19].replace("T", " "),
    }


def _leaf(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; `None` where it is absent."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _value(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return figure(gates.number(value))


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
