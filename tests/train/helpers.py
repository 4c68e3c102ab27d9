"""States of training made of numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsv3lab.config import ModelConfig, TrainConfig
from dsv3lab.train import TrainState


def random_like(shapes: Any, *, seed: int = 0) -> Any:
    """A tree of random numbers in the place of abstract arrays, norms around 1; needs no compilation as `init` does."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        centre = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(centre + 0.3 * rng.normal(size=shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_state(model: ModelConfig, train: TrainConfig, *, sequence_length: int) -> TrainState:
    """A state of random weights in which the optimizer has not begun."""
    weights = random_like(TrainState.abstract(model, train, sequence_length=sequence_length)).model
    return TrainState.of(weights, train, sequence_length=sequence_length)
