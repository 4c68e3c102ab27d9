"""The programs of a run, compiled ahead so that compilation is no part of any step's time, and kept for the next run."""

import functools as ft
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from dsv3lab.config import ModelConfig, RunConfig, TrainConfig
from dsv3lab.model import DeepSeek, Execution, abstract
from dsv3lab.train import debug, guard, micro_batch, validation
from dsv3lab.train.step import TrainState, train_step


@ft.lru_cache(maxsize=8)
def step(
    model: ModelConfig,
    train: TrainConfig,
    *,
    length: int,
    execution: Execution,
    batch_size: int | None = None,
    nan_at: tuple[int, ...] = (),
    debugging: bool = False,
) -> Any:
    """`train_step` of one device; it takes the buffers of the state that it gets.

    Args:
        model: what is trained.
        train: how, with a number for `micro_batch`.
        length: targets of one window.
        execution: how the model's mathematics is carried out.
        batch_size: sequences of a step for which it is compiled; `None`: the whole batch, after any ramp.
        nan_at: steps that come out as NaN on purpose, see `guard.nan_at`.
        debugging: not compiled, but run operation by operation; the state stays as it is.
    """

    def step(state: TrainState, windows: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        spoil = guard.nan_at(state.step, nan_at)
        return train_step(state, windows, config=train, sequence_length=length, execution=execution, mean_data=spoil)

    if debugging:
        return debug.without_jit(step)
    state = TrainState.abstract(model, train, sequence_length=length)
    return jax.jit(step, donate_argnums=0).lower(state, _windows(batch_size or train.batch_size, length)).compile()


@ft.lru_cache(maxsize=4)
def window_losses(
    model: ModelConfig, *, chunk: int, length: int, execution: Execution, batch: int, debugging: bool = False
) -> Any:
    """`validation.window_losses` of `batch` windows, with the arguments of `step`."""

    def losses(model: DeepSeek, windows: jax.Array) -> jax.Array:
        return validation.window_losses(model, windows, chunk=chunk, execution=execution)

    if debugging:
        return debug.without_jit(losses)
    return jax.jit(losses).lower(abstract(model), _windows(batch, length)).compile()


def settled(
    config: RunConfig, bound: Mapping[str, Any], *, execution: Execution, nan_at: tuple[int, ...] = ()
) -> tuple[RunConfig, micro_batch.Choice | None]:
    """The configuration with a number for `train.micro_batch`, and how it was found if that took trials.

    Args:
        config: of the run.
        bound: identity of the run to go on with: under `auto` its number is taken, since another one would add in
            another order; empty for a fresh start.
        execution: how the model's mathematics is carried out.
        nan_at: as for `step`.

    Raises:
        ConfigError: if not even one sequence fits.
    """
    batch_size, asked = config.train.batch_size, config.train.micro_batch
    if asked != "auto":
        return _with_micro_batch(config, asked or batch_size), None
    before = bound.get("train", {}).get("micro_batch")
    if isinstance(before, int) and batch_size % before == 0:
        return _with_micro_batch(config, before), None

    def needs(size: int) -> int | None:
        options: Any = {"length": config.data.sequence_length, "execution": execution, "nan_at": nan_at}
        return micro_batch.step_bytes(lambda: step(config.model, _with_micro_batch(config, size).train, **options))

    sizes = config.train.batch_sizes
    choice = micro_batch.choose(batch_size, needs, free_bytes=micro_batch.free_bytes(), smaller=sizes[:-1])
    return _with_micro_batch(config, choice.micro_batch), choice


def _with_micro_batch(config: RunConfig, size: int) -> RunConfig:
    return replace(config, train=replace(config.train, micro_batch=size))


def _windows(batch: int, length: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, length + 1), jnp.int32)
