"""Configuration: YAML holds the values, these dataclasses hold names, types, units and checks."""

import sys
import types
from typing import Any

from dsv3lab.config.build import ConfigError as ConfigError
from dsv3lab.config.build import build as build
from dsv3lab.config.build import canonical as canonical
from dsv3lab.config.build import diff as diff
from dsv3lab.config.build import digest as digest
from dsv3lab.config.build import nearest as nearest
from dsv3lab.config.build import plain as plain
from dsv3lab.config.data import DataConfig as DataConfig
from dsv3lab.config.data import DomainConfig as DomainConfig
from dsv3lab.config.model import ModelConfig as ModelConfig
from dsv3lab.config.model import YarnConfig as YarnConfig
from dsv3lab.config.model import repeating_units as repeating_units
from dsv3lab.config.paths import CONF as CONF
from dsv3lab.config.paths import ROOT as ROOT
from dsv3lab.config.paths import runs_dir as runs_dir
from dsv3lab.config.ramp import Ramp as Ramp
from dsv3lab.config.run import RunConfig as RunConfig
from dsv3lab.config.run import config as config
from dsv3lab.config.run import read_yaml as read_yaml
from dsv3lab.config.studies import TrainingsConfig as TrainingsConfig
from dsv3lab.config.studies import read_study as read_study
from dsv3lab.config.studies import study_names as study_names
from dsv3lab.config.train import BatchRampConfig as BatchRampConfig
from dsv3lab.config.train import ChangeConfig as ChangeConfig
from dsv3lab.config.train import CheckpointConfig as CheckpointConfig
from dsv3lab.config.train import DropoutConfig as DropoutConfig
from dsv3lab.config.train import EvalConfig as EvalConfig
from dsv3lab.config.train import Fp8StudyConfig as Fp8StudyConfig
from dsv3lab.config.train import LossConfig as LossConfig
from dsv3lab.config.train import OptimizerConfig as OptimizerConfig
from dsv3lab.config.train import ParallelConfig as ParallelConfig
from dsv3lab.config.train import PrecisionConfig as PrecisionConfig
from dsv3lab.config.train import ScheduleConfig as ScheduleConfig
from dsv3lab.config.train import StabilityConfig as StabilityConfig
from dsv3lab.config.train import StudyConfig as StudyConfig
from dsv3lab.config.train import TrainConfig as TrainConfig
from dsv3lab.config.workbook import WHOLE as WHOLE
from dsv3lab.config.workbook import GateConfig as GateConfig
from dsv3lab.config.workbook import PhaseConfig as PhaseConfig
from dsv3lab.config.workbook import StageConfig as StageConfig
from dsv3lab.config.workbook import TargetConfig as TargetConfig


class _CallableModule(types.ModuleType):
    """`dl.config("nano")` is a promised call and `dsv3lab.config` a promised room: this module is both."""

    def __call__(self, name: str, **overrides: Any) -> ModelConfig:
        return config(name, **overrides)


sys.modules[__name__].__class__ = _CallableModule
