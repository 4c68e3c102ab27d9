"""Trainings that take turns, step by step on the same batches, so that a slow minute of the machine hits all alike."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from dsv3lab.train.step import TrainState

Name = TypeVar("Name", bound=Hashable)


def in_turns(
    programs: Mapping[Name, Callable[..., Any]],
    states: dict[Name, TrainState],
    dataset: Any,
    *,
    batch_size: int,
    steps: int,
    read: Callable[..., tuple[Any, ...]],
) -> Iterator[tuple[int, dict[Name, tuple[Any, ...]]]]:
    """One step of every training, then the next; `states` holds where they stand.

    Args:
        programs: the compiled step of each, `(state, windows) -> (state, ...)`, in the order of their turns.
        states: where each begins; replaced in place.
        dataset: a `dsv3lab.data.Dataset`.
        batch_size: windows of each batch.
        steps: optimizer steps of each.
        read: what is wanted of a step, from what its program returns beside the state.

    Yields:
        steps done, and of each training what was read, on the host, with the wall-clock seconds of the step behind it.
    """
    for index in range(steps):
        windows = jnp.asarray(dataset.batch_at(index, batch_size=batch_size))
        row: dict[Name, tuple[Any, ...]] = {}
        for name, program in programs.items():
            started = time.perf_counter()
            states[name], *seen = program(states[name], windows)
            found = jax.device_get(read(*seen))
            row[name] = (*found, time.perf_counter() - started)
        yield index + 1, row
