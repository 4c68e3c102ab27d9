"""Phases, stages, gates and profiles as data: what runs, what it must reach and where the threshold comes from."""

from dataclasses import dataclass
from typing import Literal

from dsv3lab.config.build import ConfigError, within


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where a threshold comes from."""

    type: Literal["paper", "seed", "measured", "theory", "policy"]
    ref: str
    date: str


@dataclass(frozen=True, kw_only=True)
class RequiresConfig:
    """The hardware on which a gate means something."""

    device: Literal["any", "cpu", "gpu"]
    count: int = within(1, unit="devices", doc="devices needed")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """One gate: a metric of one stage compared with a threshold."""

    stage: str
    title: str
    role: Literal["throughput", "loss", "error", "other"]
    kind: Literal["quality", "infra", "repro"]
    metric: str
    aggregate: Literal["last", "min", "max", "median"]
    op: Literal["<=", "<", ">=", ">", "=="]
    threshold: float = within(doc="the bound")
    unit: str
    severity: Literal["block", "warn"]
    requires: RequiresConfig
    source: SourceConfig
    rationale: str


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One notebook of a phase."""

    title: str
    notebook: str
    needs: tuple[str, ...]
    """Stages whose folder this one reads, as `phase/stage`; those of the same phase run first."""
    limit_s: float = within(1.0, unit="s", doc="wall-clock limit in the default profile")
    expected_s: float = within(0.0, unit="s", doc="usual time on 2 CPU cores in the default profile, for the first ETA")


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """A target of the seed documents, and the gate that answers it."""

    text: str
    gate: str | None
    note: str


@dataclass(frozen=True, kw_only=True)
class SeedConfig:
    """What the project's seed documents say of a phase."""

    weeks: str
    infrastructure: tuple[str, ...]
    resources: dict[str, str]
    targets: tuple[TargetConfig, ...]
    """What the phase is to validate."""
    criteria: tuple[TargetConfig, ...]
    """The success criteria of the scale that the phase works towards."""
    ref: str


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One of the four infrastructure phases."""

    number: int = within(1, 4)
    title: str
    question: str
    requires_phase: int | None = within(1, 3, doc="phase that must be promoted first")
    stages: dict[str, StageConfig]
    gates: dict[str, GateConfig]
    seed: SeedConfig

    def __post_init__(self) -> None:
        for name, gate in self.gates.items():
            if gate.stage not in self.stages:
                raise ConfigError(f"gates.{name}.stage: no stage '{gate.stage}'; known: {', '.join(self.stages)}")

    @property
    def name(self) -> str:
        """`phase1` … `phase4`."""
        return f"phase{self.number}"


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """How much of everything is run."""

    name: str
    promotes: bool
    """Whether records of this profile may be promoted; the short profile for CI may not."""
    bench_repeats: int = within(1, doc="repeats behind each median")
    bench_tokens: int = within(128, unit="tokens", doc="tokens of the expert-layer benchmark in phase 1")
    routing_steps: int = within(1, unit="steps", doc="optimizer steps of each balance method in phase 1")
    museum_steps: int = within(1, unit="steps", doc="optimizer steps with each mistake of the museum in phase 1")
    museum_lessons: int = within(0, doc="mistakes that are trained with, beside the right code")
    resume_steps: int = within(4, unit="steps", doc="optimizer steps of the kill-and-resume run in phase 2")
    parallel_steps: int = within(1, unit="steps", doc="optimizer steps compared between one device and many in phase 3")
    generate_tokens: int = within(1, unit="tokens", doc="tokens generated for each prompt in phase 4")
    ragged_repeats: int = within(1, doc="repeats of the expert-layer benchmark, whose slow side takes seconds")
    time_factors: dict[str, float]
    """How many times as long as in the default profile a stage takes, by name; a stage that is not named: 1."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides the files of the run."""

    enabled: bool
    experiment: str
    flush_s: float = within(0.1, unit="s", doc="how often the pipeline passes new metrics on")
