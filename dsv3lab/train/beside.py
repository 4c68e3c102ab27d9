"""Two short trainings side by side: with the MTP modules and without, the same start and the same batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from dsv3lab.config import RunConfig
from dsv3lab.model import DeepSeek
from dsv3lab.train.loop import execution_of
from dsv3lab.train.step import TrainState, train_step
from dsv3lab.train.turns import in_turns


@dataclass(frozen=True)
class Side:
    """What one of the two trainings went through, one number for each step.

    loss: next-token loss, nats per token [steps].
    mtp_loss: mean loss of the MTP depths, nats per token [steps]; zeros without them.
    seconds: wall-clock time of the step, compilation excluded [steps].
    """

    loss: np.ndarray
    mtp_loss: np.ndarray
    seconds: np.ndarray


def with_and_without_mtp(
    model: DeepSeek,
    config: RunConfig,
    dataset: Any,
    *,
    steps: int,
    observe: Callable[[int, DeepSeek], None],
    every: int,
    progress: Callable[[str], None] = print,
) -> tuple[Side, Side]:
    """Train a model with its MTP modules and without, step by step in turns, so that a slow minute hits both.

    Every other weight starts equal. The schedule is that of the configuration, fitted into `steps`.

    Args:
        model: where both start; it has MTP modules.
        config: data and training.
        dataset: a `dsv3lab.data.Dataset`.
        steps: optimizer steps of each.
        observe: receives the number of steps done and the model with MTP modules, before the first step, then at the
            interval, and at the end.
        every: steps between two observations.
        progress: receives one line for each observation.

    Returns:
        the training with the modules, and the one without.
    """
    length, batch = config.data.sequence_length, config.train.batch_size
    train = replace(config.train, tokens=steps * batch * length)
    execution = execution_of(config)

    def step(state: TrainState, windows: Int[Array, "batch seq_plus_one"]) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, windows, config=train, sequence_length=length, execution=execution)

    models = {True: model, False: replace(model, mtp=())}
    states = {modules: TrainState.of(one, train, sequence_length=length) for modules, one in models.items()}
    windows = jnp.asarray(dataset.batch_at(0, batch_size=batch))
    programs = {modules: jax.jit(step).lower(state, windows).compile() for modules, state in states.items()}
    rows: list[dict[bool, tuple[Any, ...]]] = []
    observe(0, model)
    for done, row in in_turns(programs, states, dataset, batch_size=batch, steps=steps, read=_losses):
        rows.append(row)
        if done % every == 0 or done == steps:
            observe(done, states[True].model)
            progress(f"step {done}: loss {row[True][0]:.3f} with MTP, {row[False][0]:.3f} without")
    with_mtp, without = (Side(*np.array([row[modules] for row in rows], np.float64).T) for modules in models)
    return with_mtp, without


def _losses(metrics: dict[str, Array]) -> tuple[Array, Array]:
    return metrics["loss"], metrics["mtp_loss"]
