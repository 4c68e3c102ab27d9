"""The recipe of a run along its steps, as numbers: what the training reads at each of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from dsv3lab.config import TrainConfig
from dsv3lab.train import optimizer
from dsv3lab.train.step import weights_at


@dataclass(frozen=True)
class Recipe:
    """Values at some steps, one for each.

    tokens: targets taken before the step.
    learning_rate, batch_size (sequences), mtp_weight, bias_update_speed: what the step uses.
    """

    tokens: np.ndarray
    learning_rate: np.ndarray
    batch_size: np.ndarray
    mtp_weight: np.ndarray
    bias_update_speed: np.ndarray


def recipe(config: TrainConfig, sequence_length: int, *, steps: Sequence[int]) -> Recipe:
    """The recipe of `config` at `steps` (from 0)."""
    ramp, at = config.ramp(sequence_length), jnp.asarray(steps)
    loss = weights_at(config, at, sequence_length).loss
    return Recipe(
        tokens=np.array([ramp.tokens_before(step) for step in steps], np.float64),
        learning_rate=np.asarray(optimizer.schedule(config, sequence_length)(at)),
        batch_size=np.array([ramp.batch_size(step) for step in steps]),
        mtp_weight=np.broadcast_to(np.asarray(loss.mtp_weight), at.shape),
        bias_update_speed=np.broadcast_to(np.asarray(loss.bias_update_speed), at.shape),
    )
