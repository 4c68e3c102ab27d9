"""The grid of a sweep: Hydra's comma syntax into combinations, each checked before anything runs, and what is compared."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsv3lab.config import ConfigError, digest, nearest
from dsv3lab.workbook import gates
from dsv3lab.workbook.arguments import Arguments, Prepared, prepare
from dsv3lab.workbook.compose import parse_overrides
from dsv3lab.workbook.promotion import Ground, Newest

Mode = Literal["min", "max"]
FOLDER, METRICS = "sweeps", "metrics.jsonl"
LOOKED_AT = 20
"""Newest runs in which a metric is looked for that has no gate."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of the swept values."""

    keys: tuple[str, ...]
    """What is swept, as it stands on the command line."""
    fixed: tuple[str, ...]
    """The overrides that all combinations share."""
    values: tuple[tuple[str, ...], ...]
    """For each combination, a value for each key."""

    def overrides(self, values: Sequence[str]) -> tuple[str, ...]:
        """The Hydra overrides of one combination."""
        return (*self.fixed, *(f"{key}={value}" for key, value in zip(self.keys, values, strict=True)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys as a table shows them: the last part, where that is enough to tell them apart."""
        last = [key.rpartition(".")[2] for key in self.keys]
        return tuple(key if last.count(short) > 1 else short for key, short in zip(self.keys, last, strict=True))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What combinations are compared by."""

    name: str
    mode: Mode
    stages: tuple[str, ...]
    """Where it is looked for; the first stage that has it counts."""

    def read(self, folder: Path) -> float | None:
        """Its last value in a run folder; nothing where no stage has logged a finite one."""
        for stage in self.stages:
            try:
                found = [p.value for p in gates.read_points(folder / stage / METRICS) if p.name == self.name]
            except gates.MetricsError:
                continue
            if found:
                return gates.number(found[-1])
        return None


def expand(overrides: Sequence[str]) -> Grid:
    """The grid that overrides with commas (or `range`, `choice`) ask for, in the order of the command line.

    Raises:
        ConfigError: for what Hydra cannot read or count, a key that is swept twice, or when nothing is swept.
    """
    swept: dict[str, list[str]] = {}
    fixed: list[str] = []
    for override in parse_overrides(overrides, sweeps=True):
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
            continue
        key = override.get_key_element()
        if key in swept:
            raise ConfigError(f"'{override.input_line}': {key} is swept twice")
        if not (override.is_choice_sweep() or override.is_range_sweep()):
            raise ConfigError(
                f"'{override.input_line}' names no values one by one; write {key}=a,b or {key}=range(0,4)"
            )
        swept[key] = list(dict.fromkeys(override.sweep_string_iterator()))
    if not swept:
        raise ConfigError("nothing is swept: give a key several values, e.g. train.seed=0,1")
    return Grid(keys=tuple(swept), fixed=tuple(fixed), values=tuple(itertools.product(*swept.values())))


def check(name: str, overrides: Sequence[str], *, only: str, sweep: str, conf: Path) -> Prepared:
    """One combination, ready to run: composed, with the stages that are asked for and those of the phase that they read.

    Raises:
        ConfigError: one sentence with the nearest name.
    """
    prepared = prepare(name, Arguments(overrides=tuple(overrides), only=only), conf=conf)
    order = _with_needs(prepared) if only else prepared.order
    reason = f"it belongs to the sweep {sweep}"
    return dataclasses.replace(prepared, order=order, chosen=order, overridden=(reason,))


def ground(prepared: Prepared, runs: Path) -> Ground:
    """What a combination reads of other phases: their newest records, intact and not stale.

    A sweep varies what promoted phases agree on. So it builds on none of them, and its records open no phase.

    Raises:
        UpstreamError: with the phase whose record is missing, and the command to run.
    """
    phase, profile = prepared.config.phase, prepared.config.profile
    needs = [need for name in prepared.order for need in phase.stages[name].needs]
    elsewhere = sorted({need for need in needs if not need.startswith(f"{phase.name}/")})
    if not elsewhere:
        return Ground(upstream=None, stages={})
    newest = Newest(profile.name, promotes=profile.promotes, runs=runs)
    for number in sorted({int(need.partition("/")[0].removeprefix("phase")) for need in elsewhere}):
        newest.check(number)
    return Ground(upstream=None, stages={need: newest.stage(need) for need in elsewhere})


def choose(prepared: Prepared, *, metric: str, mode: str, runs: Path) -> Metric:
    """The metric that combinations are compared by; without a name, that of the first gate on a loss or an error.

    Raises:
        ConfigError: if no gate of these stages names one, or if a named one is neither a gate's nor in an earlier run of
            the phase, or has no gate that says which is better.
    """
    mine = [gate for gate in prepared.config.phase.gates.values() if gate.stage in prepared.order]
    if metric:
        known = [gate for gate in mine if gate.metric == metric]
        if not known:
            _refuse_unknown(metric, {gate.metric for gate in mine}, logged(prepared, runs))
            if not mode:
                raise ConfigError(f"--mode: no gate says which '{metric}' is better; write --mode min or --mode max")
    else:
        known = [gate for role in ("loss", "error", "throughput") for gate in mine if gate.role == role]
        if not known:
            raise ConfigError("--metric: no gate of these stages names one; write --metric NAME --mode min")
    wanted = mode or ("max" if known and known[0].op in (">", ">=") else "min")
    first = [known[0].stage] if known else []
    return Metric(
        name=metric or known[0].metric,
        mode="max" if wanted == "max" else "min",
        stages=tuple(dict.fromkeys([*first, *prepared.order])),
    )


def name_of(phase: str, grid: Grid, only: str) -> str:
    """The name of a sweep: the same for the same keys, so that values can be added to it."""
    return f"{phase}-{digest([phase, only, sorted(grid.keys), sorted(grid.fixed)])[:8]}"


def sweep_of(folder: Path) -> Path | None:
    """The folder of the sweep that a run folder belongs to, if it does."""
    place = folder.parent.parent
    return place if place.parent.name == FOLDER else None


def logged(prepared: Prepared, runs: Path) -> set[str]:
    """The metrics that earlier runs of the phase have logged in the stages of a combination, also in sweeps."""
    phase = prepared.config.phase.name
    folders = [*runs.glob(f"{phase}/*"), *runs.glob(f"{FOLDER}/*/{phase}/*")]
    newest = sorted(folders, key=lambda folder: folder.name, reverse=True)[:LOOKED_AT]
    return set(_names(newest, prepared.order))


def missing(metric: Metric, folders: Sequence[Path]) -> str:
    """What to say when no combination has logged the metric."""
    found = _names(folders, metric.stages)
    return f"no combination has logged '{metric.name}'{nearest(metric.name, found)}" if found else ""


def _refuse_unknown(metric: str, gated: set[str], earlier: set[str]) -> None:
    if metric not in earlier:
        hint = nearest(metric, gated | earlier)
        raise ConfigError(f"--metric: no gate of these stages and no earlier run of them has '{metric}'{hint}")


def _names(folders: Sequence[Path], stages: Sequence[str]) -> list[str]:
    """The metrics that the stages have logged in run folders, once each, in the order of their files."""
    points = [point for folder in folders for stage in stages for point in _points(folder / stage / METRICS)]
    return list(dict.fromkeys(point.name for point in points))


def _points(path: Path) -> list[gates.Point]:
    try:
        return gates.read_points(path)
    except gates.MetricsError:
        return []


def _with_needs(prepared: Prepared) -> tuple[str, ...]:
    phase = prepared.config.phase
    wanted = set(prepared.chosen)
    for name in reversed(prepared.order):  # each stands behind what it needs
        if name in wanted:
            mine = [need for need in phase.stages[name].needs if need.startswith(f"{phase.name}/")]
            wanted |= {need.partition("/")[2] for need in mine}
    return tuple(name for name in prepared.order if name in wanted)
