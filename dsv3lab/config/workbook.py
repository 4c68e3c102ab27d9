"""Phases, stages, gates and profiles as data: what runs, what it must reach and where the threshold comes from."""

from dataclasses import dataclass
from typing import Literal

from dsv3lab.config.build import ConfigError, within


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where a threshold comes from."""

    type: Literal["paper", "seed", "measured", "theory", "policy"]
    """What kind of source."""
    ref: str
    """Where in it, or what was measured."""
    date: str
    """When it was read or measured, e.g. 2026-11-22."""


WHOLE = "phase"
"""What a gate names as its stage if it judges the execution as a whole."""


@dataclass(frozen=True, kw_only=True)
class RequiresConfig:
    """The hardware on which a gate means something, and the profile or least training, if it is about these only."""

    device: Literal["any", "cpu", "gpu"]
    """Kind of device; on another one the gate is skipped."""
    count: int = within(1, unit="devices", doc="devices needed")
    profile: str | None = None
    """The only profile whose sizes it judges (absent: every one)."""
    tokens: int | None = None
    """Fewest tokens of training, as the stage's metric `train/tokens` says; after fewer it is skipped (absent: none)."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """One gate: a metric of one stage, or of the phase as a whole (`WHOLE`), compared with a threshold."""

    stage: str
    """The stage that logs the metric."""
    title: str
    """What it asks, for people."""
    role: Literal["throughput", "loss", "error", "other"]
    """Every stage needs a throughput gate, and a loss or error gate."""
    kind: Literal["quality", "infra", "repro"]
    """Whether it judges the result, the machinery or its repeatability."""
    metric: str
    """Name of the metric in `metrics.jsonl`."""
    aggregate: Literal["last", "min", "max", "median"]
    """Which of the metric's values is compared."""
    op: Literal["<=", "<", ">=", ">", "=="]
    """How the value must stand to the threshold."""
    threshold: float | Literal["baseline"] = within(doc="the bound; `baseline`: the accepted figure and the tolerance")
    tolerance: float | None = None
    """With `threshold: baseline`: how far from the accepted figure a value may lie, as a fraction of it."""
    unit: str
    """Unit of metric and threshold."""
    severity: Literal["block", "warn"]
    """Whether failing it stops the promotion."""
    requires: RequiresConfig
    source: SourceConfig
    rationale: str
    """Why the threshold is where it is, in a line."""

    def __post_init__(self) -> None:
        if self.threshold != "baseline":
            if self.tolerance is not None:
                raise ConfigError("tolerance: only a gate with `threshold: baseline` has one")
            return
        if self.tolerance is None or not 0.0 < self.tolerance <= 1.0:
            raise ConfigError(f"tolerance: `threshold: baseline` needs one above 0 and at most 1, not {self.tolerance}")
        if self.op == "==":
            raise ConfigError("op: `threshold: baseline` has a tolerance on one side: give <= or >=")
        if self.severity == "block":
            raise ConfigError(
                "severity: `threshold: baseline` can only warn: the first run has nothing to compare with"
            )


@dataclass(frozen=True, kw_only=True)
class FigureConfig:
    """One accepted figure."""

    value: float = within(doc="as the run recorded it")
    unit: str
    """Its unit, that of the gate which compares with it."""


@dataclass(frozen=True, kw_only=True)
class StageBaselineConfig:
    """The accepted figures of one stage, and what a run must share with them to be compared."""

    device: str
    """Kind of device that it ran on."""
    devices: int = within(1, unit="devices", doc="how many of them")
    config: dict[str, str]
    """Section of the configuration that the stage computes with -> the first digits of its SHA-256."""
    metrics: dict[str, FigureConfig]


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Figures of a promoted run that later runs are compared with; `dsv3lab baseline accept` writes the file."""

    run: str
    """Name of its folder, the time at which it began."""
    profile: str
    """The profile that it ran with."""
    revision: str
    """The revision of the code."""
    accepted: str
    """The day, as YYYY-MM-DD."""
    reason: str
    """Why these figures are what to compare with."""
    stages: dict[str, StageBaselineConfig]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One notebook of a phase."""

    title: str
    """What it does, for people."""
    notebook: str
    """Its path in the checkout."""
    needs: tuple[str, ...]
    """Stages whose folder this one reads, as `phase/stage`; those of the same phase run first."""
    limit_s: float = within(1.0, unit="s", doc="wall-clock limit in the default profile")
    expected_s: float = within(0.0, unit="s", doc="usual time on 2 CPU cores in the default profile, for the first ETA")


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """A target of the seed documents, and the gate that answers it."""

    text: str
    """As the seed says it."""
    gate: str | None
    """The gate that answers it (null: none does)."""
    note: str
    """What the gate shows of it, or why no gate answers it and what would."""


@dataclass(frozen=True, kw_only=True)
class CriterionConfig(TargetConfig):
    """A success criterion of the seed documents: the words of one, and where the figure in them does not add up."""

    ref: str
    """Which seed, and where in it."""
    objection: str | None = None
    """Where the seed's own figure does not add up."""


@dataclass(frozen=True, kw_only=True)
class SeedConfig:
    """What the project's seed documents say of a phase."""

    weeks: str
    """When in the seed's plan."""
    infrastructure: tuple[str, ...]
    """What it runs on."""
    resources: dict[str, str]
    """What it takes of each: memory, storage, network."""
    targets: tuple[TargetConfig, ...]
    """What the phase is to validate."""
    criteria: tuple[CriterionConfig, ...]
    """The success criteria of the scale that the phase works towards."""
    ref: str
    """Which seed, and where in it."""


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One of the four infrastructure phases."""

    number: int = within(1, 4, doc="which of the four")
    title: str
    """Its name, for people."""
    question: str
    """What it is to answer."""
    requires_phase: int | None = within(1, 3, doc="phase that must be promoted first (null: none)")
    stages: dict[str, StageConfig]
    """Its notebooks, by name."""
    gates: dict[str, GateConfig]
    """What they must reach, by name."""
    baseline: BaselineConfig | None = None
    """The accepted figures of a promoted run; `None` before one was accepted."""
    seed: SeedConfig

    def __post_init__(self) -> None:
        if WHOLE in self.stages:
            raise ConfigError(f"stages.{WHOLE}: choose another name; gates mean the whole phase by '{WHOLE}'")
        known = (*self.stages, WHOLE)
        for name, gate in self.gates.items():
            if gate.stage not in known:
                raise ConfigError(f"gates.{name}.stage: no stage '{gate.stage}'; known: {', '.join(known)}")

    @property
    def name(self) -> str:
        """`phase1` … `phase4`."""
        return f"phase{self.number}"


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """How much of everything is run."""

    name: str
    """The profile's name: that of its file."""
    promotes: bool
    """Whether records of this profile may be promoted; the short profile for CI may not."""
    device: Literal["any", "gpu"]
    """What its sizes are for; a profile for a GPU does not end within its limits on a CPU."""
    bench_repeats: int = within(1, doc="repeats behind each median")
    bench_tokens: int = within(128, unit="tokens", doc="tokens of the expert-layer benchmark in phase 1")
    moe_steps: int = within(
        1, unit="steps", doc="optimizer steps of each training of the DeepSeekMoE notebook, phase 1"
    )
    moe_seeds: int = within(1, unit="seeds", doc="seeds of each of its expert layouts")
    mtp_steps: int = within(2, unit="steps", doc="optimizer steps with MTP and without in phase 1")
    museum_steps: int = within(1, unit="steps", doc="optimizer steps with each mistake of the museum in phase 1")
    museum_programs: int = within(
        0, doc="mistakes that are trained with in a program of their own, beside the one for all others"
    )
    fp8_steps: int = within(2, unit="steps", doc="optimizer steps in each number format in phase 1")
    resume_steps: int = within(4, unit="steps", doc="optimizer steps of the kill-and-resume run in phase 2")
    parallel_steps: int = within(1, unit="steps", doc="optimizer steps compared between one device and many in phase 3")
    stability_steps: int = within(10, unit="steps", doc="optimizer steps of the stability run in phase 3")
    generate_tokens: int = within(1, unit="tokens", doc="tokens generated for each prompt in phase 4")
    slow_repeats: int = within(1, doc="repeats behind each median of interleaved calls, some of which take seconds")
    memory_policies: tuple[Literal["none", "full", "products", "report"], ...]
    """Remat policies that phase 2 compiles and times."""
    schedule_tokens: int = within(1, unit="tokens", doc="budget of each of the two trainings of phase 2's schedule")
    stream_tokens: int = within(1, unit="tokens", doc="tokens of the parts without products in phase 1's roofline")
    time_factors: dict[str, float]
    """How many times as long as in the default profile a stage takes, by name; a stage that is not named: 1."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides the files of the run."""

    enabled: bool
    """Whether the pipeline passes metrics on to MLflow."""
    experiment: str
    """Name of MLflow's experiment."""
    flush_s: float = within(0.1, unit="s", doc="how often the pipeline passes new metrics on")
    also: tuple[Literal["tensorboard", "wandb"], ...]
    """Trackers besides MLflow; each needs the extra of the package that has its name."""
