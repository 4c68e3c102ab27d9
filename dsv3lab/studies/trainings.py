"""The trainings of a study: each is a configuration of its own, composed by Hydra like any other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dsv3lab.config import CONF, ConfigError, RunConfig, TrainingsConfig, digest, plain, read_study
from dsv3lab.plan import flops_per_token, parameters
from dsv3lab.workbook.compose import compose
from dsv3lab.workbook.inputs import code_sha256, read_environment

TRAINED = ("model", "data", "train", "eval", "precision")
"""The sections of the configuration that a training's numbers depend on."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One variant with one seed."""

    variant: str
    seed: int
    overrides: tuple[str, ...]
    config: RunConfig
    resolved: dict[str, Any]

    @property
    def name(self) -> str:
        """`bias update, seed 1`."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.config.train.steps(self.config.data.sequence_length)

    @property
    def tokens(self) -> int:
        """Targets of the next-token loss in all steps."""
        return self.steps * self.config.train.batch_size * self.config.data.sequence_length

    @property
    def flops(self) -> int:
        """Useful matmul FLOPs of the whole training, see `plan.flops_per_token` (causal)."""
        length = self.config.data.sequence_length
        return self.tokens * flops_per_token(self.config.model, sequence_length=length, causal=True)

    @property
    def parameters(self) -> int:
        """Parameters of the main model."""
        return parameters(self.config.model).total

    @property
    def sha256(self) -> str:
        """Hash of what its numbers depend on."""
        return digest({name: plain(getattr(self.config, name)) for name in TRAINED})


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study with its trainings in the order in which they run."""

    name: str
    profile: str
    settings: TrainingsConfig
    overrides: tuple[str, ...]
    trainings: tuple[Training, ...]

    @property
    def predicted(self) -> Training | None:
        """The training whose loss is predicted before it runs; the last one."""
        return self.trainings[-1] if self.settings.predicted is not None else None

    def identity(self) -> str:
        """Hash of everything that the results depend on: settings, configurations, code and environment."""
        environment = read_environment()
        known: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "trainings"}
        known |= {"trainings": [one.sha256 for one in self.trainings], "code": code_sha256()}
        return digest(known | {"packages": environment.packages, "variables": environment.variables})


def read(name: str, *, profile: str, overrides: Sequence[str] = (), conf: Path = CONF) -> Study:
    """The study `name` at the size of a profile; `overrides` come last and count for every training.

    Raises:
        ConfigError: for an unknown study, profile or key, or trainings that a study cannot compare.
    """
    settings = read_study(name, profile=profile, conf=conf)
    trainings = []
    for variant, seed in _order(settings):
        words = (*settings.overrides, *settings.variants[variant], *overrides, f"train.seed={seed}")
        config, resolved = compose(words, conf=conf)
        if config.train.batch_ramp is not None:
            raise ConfigError(f"studies/{name}: train.batch_ramp: studies count tokens by whole batches; leave it out")
        trainings.append(Training(variant=variant, seed=seed, overrides=words, config=config, resolved=resolved))
    if len({digest(one.config.data) for one in trainings}) > 1:
        raise ConfigError(f"studies/{name}: the variants train on different data; give all the same data.* overrides")
    if len({one.folder for one in trainings}) < len(trainings):
        raise ConfigError(f"studies/{name}: two variants differ only in signs; rename one")
    if len({one.sha256 for one in trainings}) < len(trainings):
        raise ConfigError(f"studies/{name}: two of its trainings are the same; an override hides what they differ in")
    return Study(name=name, profile=profile, settings=settings, overrides=tuple(overrides), trainings=tuple(trainings))


def _order(settings: TrainingsConfig) -> list[tuple[str, int]]:
    """All variants with the first seed, then with the next; the predicted one comes last, once."""
    compared = [name for name in settings.variants if name != settings.predicted]
    last = [] if settings.predicted is None else [(settings.predicted, settings.seeds[0])]
    return [(name, seed) for seed in settings.seeds for name in compared] + last
