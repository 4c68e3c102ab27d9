"""A study: many trainings that answer one question, outside the phases. Its values are in `conf/studies/`."""

from dataclasses import dataclass
from pathlib import Path

from dsv3lab.config.build import ConfigError, build, nearest, within
from dsv3lab.config.paths import CONF
from dsv3lab.config.run import read_yaml

PROFILES = {"default": "", "ci": "ci"}
"""Profile -> folder below `conf/studies/`; `ci` is the same study at the size of tests."""


@dataclass(frozen=True, kw_only=True)
class TrainingsConfig:
    """Variants of one training, each with several seeds."""

    title: str
    """What the study compares, in a few words."""
    question: str
    """What its trainings answer."""
    overrides: tuple[str, ...]
    """Hydra overrides of all trainings."""
    variants: dict[str, tuple[str, ...]]
    """Name -> further Hydra overrides of a variant."""
    seeds: tuple[int, ...] = within(0, doc="seeds of the initialisation; every variant is trained with each")
    predicted: str | None
    """The variant whose loss is predicted from the others before it runs: it comes last, with the first seed only."""
    last: float = within(0.0, 1.0, unit="of the steps", doc="end of the training over which the loss is averaged")
    points: int = within(
        1, doc="points of each curve in the result; each is the mean of the steps since the one before"
    )
    expected_s: float = within(0.0, unit="s", doc="usual time of all trainings on two idle CPU cores")

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise ConfigError("variants and seeds: each needs at least one entry")
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds: {list(self.seeds)} names one twice; the same training would run again")
        if self.predicted is not None and self.predicted not in self.variants:
            raise ConfigError(f"predicted: no variant '{self.predicted}'{nearest(self.predicted, self.variants)}")


def study_names(conf: Path = CONF) -> list[str]:
    """The studies that there are."""
    return sorted(path.stem for path in (conf / "studies").glob("*.yaml"))


def read_study(name: str, *, profile: str, conf: Path = CONF) -> TrainingsConfig:
    """The study `name` at the size of a profile.

    Raises:
        ConfigError: for an unknown study or profile (with the nearest), or a value that does not fit.
    """
    known = study_names(conf)
    if name not in known:
        raise ConfigError(f"no study '{name}'{nearest(name, known)}")
    if profile not in PROFILES:
        raise ConfigError(f"no profile '{profile}' of studies{nearest(profile, PROFILES)}")
    path = conf / "studies" / PROFILES[profile] / f"{name}.yaml"
    return build(TrainingsConfig, read_yaml(path), path=f"studies/{name}")
