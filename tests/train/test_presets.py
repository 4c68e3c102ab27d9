"""The presets keep what they promise: measured on the compiled step, and counted in the traced one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from dsv3lab import program
from dsv3lab.config import RunConfig
from dsv3lab.model import COUNTABLE
from dsv3lab.train import loop, step
from dsv3lab.workbook.compose import compose


def preset(*overrides: str) -> RunConfig:
    """The notebook's model with fewer layers, which compile sooner, and a preset."""
    return compose(["model.num_hidden_layers=2", *overrides], phase=2)[0]


def abstract(config: RunConfig) -> tuple[step.TrainState, jax.ShapeDtypeStruct]:
    length = config.data.sequence_length
    windows = jax.ShapeDtypeStruct((config.train.batch_size, length + 1), jnp.int32)
    return step.TrainState.abstract(config.model, config.train, sequence_length=length), windows


def temporaries(config: RunConfig) -> int:
    """Bytes that the compiled step holds beside its arguments and results."""
    options = {"config": config.train, "sequence_length": config.data.sequence_length}
    execution = loop.execution_of(config)
    run = jax.jit(lambda s, w: step.train_step(s, w, **options, execution=execution), donate_argnums=0)
    return run.lower(*abstract(config)).compile().memory_analysis().temp_size_in_bytes


def flops(config: RunConfig) -> int:
    options = {"config": config.train, "sequence_length": config.data.sequence_length}
    countable = {"grouped_matmul": COUNTABLE.grouped_matmul, "attention": COUNTABLE.attention}
    execution = replace(loop.execution_of(config), **countable)
    return program.flops(lambda s, w: step.train_step(s, w, **options, execution=execution), *abstract(config))


@pytest.mark.limit(240)  # compiles the step of the notebook's model twice
def test_low_memory_needs_a_fraction_of_the_temporaries() -> None:
    """An eighth of the batch at a time, and of its layers only the inputs are kept."""
    assert temporaries(preset("preset=low_memory")) < temporaries(preset()) / 4


def test_max_speed_computes_nothing_twice() -> None:
    fast, usual, sparing = (flops(preset(*words)) for words in ((["preset=max_speed"]), [], ["preset=low_memory"]))
    assert fast <= usual < sparing
