"""The whole configuration of one run, and the reader of named model configurations."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dsv3lab.config.build import ConfigError, build, nearest
from dsv3lab.config.data import DataConfig
from dsv3lab.config.model import ModelConfig
from dsv3lab.config.paths import CONF
from dsv3lab.config.train import EvalConfig, ParallelConfig, PrecisionConfig, StudyConfig, TrainConfig
from dsv3lab.config.workbook import PhaseConfig, ProfileConfig, TrackingConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that one phase execution is determined by."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig
    study: StudyConfig
    precision: PrecisionConfig
    parallel: ParallelConfig
    profile: ProfileConfig
    tracking: TrackingConfig
    phase: PhaseConfig
    debug: bool
    """Whether training runs without jit and names the array in which a NaN began; never promoted."""

    def __post_init__(self) -> None:
        if self.data.tokenizer.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"data.tokenizer.vocab_size: {self.data.tokenizer.vocab_size} tokens do not fit "
                f"model.vocab_size {self.model.vocab_size}"
            )
        if self.data.sequence_length > self.model.max_position_embeddings:
            raise ConfigError(
                f"data.sequence_length: {self.data.sequence_length} is above "
                f"model.max_position_embeddings {self.model.max_position_embeddings}; choose "
                f"{_reads(self.data.sequence_length)}or raise it"
            )
        for size in self.train.batch_sizes:
            if size % self.parallel.data:
                ways = self.parallel.data
                fits = math.gcd(ways, *self.train.batch_sizes)
                raise ConfigError(
                    f"parallel.data: phase 3 splits each batch over {ways} devices, and {size} sequences do not split; "
                    f"choose train.batch_size as a multiple of {ways}, or parallel.data={fits}"
                )

    def expected_s(self, stage: str) -> float:
        """Usual time of a stage of this phase under this profile, in seconds."""
        return self.phase.stages[stage].expected_s * self.profile.time_factors.get(stage, 1.0)

    def limit_s(self, stage: str) -> float:
        """Wall-clock limit of a stage of this phase, in seconds: a longer profile has more, a shorter one not less."""
        return self.phase.stages[stage].limit_s * max(1.0, self.profile.time_factors.get(stage, 1.0))


def _reads(length: int) -> str:
    """The smallest of the seeds' models, and then of DeepSeek's, that reads so many tokens, as a choice."""
    fits = [name for name in ("tiny", "small", "large", "v3") if config(name).max_position_embeddings >= length]
    return f"model={fits[0]}, " if fits else "another model, "


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: if the file is missing, is not YAML or is not a mapping.
    """
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys")
    return value


def config(name: str, **overrides: Any) -> ModelConfig:
    """The model configuration `conf/model/<name>.yaml`, with top-level keys replaced by `overrides`.

    Raises:
        ConfigError: for an unknown name or key (with the nearest one) or a value that does not fit.
    """
    known = {path.stem: path for path in sorted((CONF / "model").glob("*.yaml"))}
    if name not in known:
        raise ConfigError(f"model '{name}' is not in {CONF / 'model'}{nearest(name, known)}")
    return build(ModelConfig, {**read_yaml(known[name]), **overrides}, path="model")
