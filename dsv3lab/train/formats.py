"""Trainings in several number formats side by side: the same batches, and the same start where the seed is the same."""

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
from dsv3lab.train.turns import in_turns


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
    compiled = {precision: program(precision, first, windows) for precision in {f.precision for f in formats.values()}}
    programs = {name: compiled[one.precision] for name, one in formats.items()}
    rows: list[dict[str, tuple[Any, ...]]] = []
    for done, row in in_turns(programs, states, dataset, batch_size=batch, steps=steps, read=_loss):
        rows.append(row)
        if done % max(1, steps // 10) == 0 or done == steps:
            losses = ", ".join(f"{name} {loss:.3f}" for name, (loss, _) in row.items())
            progress(f"step {done}/{steps}: loss {losses}")
    return {name: Trace(*np.array([row[name] for row in rows], np.float64).T) for name in formats}


def _loss(metrics: dict[str, Array]) -> tuple[Array]:
    return (metrics["loss"],)
