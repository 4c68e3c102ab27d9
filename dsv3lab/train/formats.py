"""Trainings in several number formats side by side: the same batches, and the same start where the seed is the same."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from dsv3lab.config import PrecisionConfig, RunConfig
from dsv3lab.train.loop import execution_of
from dsv3lab.train.step import TrainState, train_step


@dataclass(frozen=True, kw_only=True)
class Format:
    """One of the trainings: its number formats, and the seed of its initial weights."""

    precision: PrecisionConfig
    seed: int


@dataclass(frozen=True)
class Trace:
    """What one of the trainings went through, one number for each step.

    loss: next-token loss, nats per token [steps].
    seconds: wall time [steps].
    """

    loss: np.ndarray
    seconds: np.ndarray

    @property
    def late(self) -> float:
        """Mean loss of the last quarter of the steps, nats per token."""
        return float(self.loss[-max(1, len(self.loss) // 4) :].mean())


def compare_formats(
    config: RunConfig,
    dataset: Any,
    formats: Mapping[str, Format],
    *,
    steps: int,
    progress: Callable[[str], None] = print,
) -> dict[str, Trace]:
    """Train once for each of `formats`, in turns step by step, so that a slow minute hits all.

    The schedule is that of the configuration, fitted into `steps`.

    Args:
        config: model, data and training; its own precision and seed are replaced.
        dataset: a `dsv3lab.data.Dataset`.
        formats: name -> number formats and seed.
        steps: optimizer steps of each.
        progress: receives about ten lines.
    """
    length, batch = config.data.sequence_length, config.train.batch_size
    train = replace(config.train, tokens=steps * batch * length)

    def program(precision: PrecisionConfig, state: TrainState, windows: Int[Array, "batch seq_plus_one"]) -> Any:
        execution = execution_of(replace(config, precision=precision))

        def step(state: TrainState, windows: Array) -> tuple[TrainState, dict[str, Array]]:
            return train_step(state, windows, config=train, sequence_length=length, execution=execution)

        return jax.jit(step).lower(state, windows).compile()

    starts = {
        seed: TrainState.init(config.model, replace(train, seed=seed), sequence_length=length)
        for seed in {one.seed for one in formats.values()}
    }
    states = {name: starts[one.seed] for name, one in formats.items()}
    first, windows = next(iter(starts.values())), jnp.asarray(dataset.batch_at(0, batch_size=batch))
    programs = {precision: program(precision, first, windows) for precision in {f.precision for f in formats.values()}}
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in formats}
    for index in range(steps):
        windows = jnp.asarray(dataset.batch_at(index, batch_size=batch))
        for name, one in formats.items():
            started = time.perf_counter()
            states[name], metrics = programs[one.precision](states[name], windows)
            rows[name].append((float(metrics["loss"]), time.perf_counter() - started))
        if (index + 1) % max(1, steps // 10) == 0 or index + 1 == steps:
            losses = ", ".join(f"{name} {row[-1][0]:.3f}" for name, row in rows.items())
            progress(f"step {index + 1}/{steps}: loss {losses}")
    return {name: Trace(*np.array(row, np.float64).T) for name, row in rows.items()}
