"""Short trainings side by side: the same start, the same batches, other weights of the balance terms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsv3lab.config import RunConfig
from dsv3lab.train.loop import execution_of
from dsv3lab.train.step import TrainState, train_step


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One balance method: alpha of the sequence-wise loss (Eq. 17) and gamma of the bias update (2.1.2)."""

    balance_alpha: float
    bias_update_speed: float


@dataclass(frozen=True)
class History:
    """What one short training went through, one row for each step.

    loss: next-token loss, nats per token [steps].
    maxvio: MaxVio of each MoE layer [steps, layers].
    loads: tokens of each expert of each MoE layer [steps, layers, experts].
    """

    loss: np.ndarray
    maxvio: np.ndarray
    loads: np.ndarray


def compare(
    config: RunConfig,
    dataset: Any,
    variants: Mapping[str, Variant],
    *,
    steps: int,
    progress: Callable[[str], None] = print,
) -> dict[str, History]:
    """Train each variant for `steps` steps from the same initial weights on the same batches.

    The weights of the balance terms are arguments of one compiled program, so nothing else can differ.

    Args:
        config: model, data and training; its own balance weights are replaced by those of each variant.
        dataset: a `dsv3lab.data.Dataset`.
        variants: name -> weights of the balance terms.
        steps: optimizer steps of each.
        progress: receives one line for each finished variant.
    """
    execution, length = execution_of(config), config.data.sequence_length

    @jax.jit
    def step(
        state: TrainState,
        windows: Int[Array, "batch seq_plus_one"],
        alpha: Float[Array, ""],
        gamma: Float[Array, ""],
    ) -> tuple[TrainState, dict[str, Array]]:
        loss: Any = replace(config.train.loss, balance_alpha=alpha, bias_update_speed=gamma)
        train = replace(config.train, loss=loss)
        return train_step(state, windows, config=train, sequence_length=length, execution=execution)

    histories = {}
    for name, variant in variants.items():
        state = TrainState.init(config.model, config.train, sequence_length=length)
        weights = (jnp.float32(variant.balance_alpha), jnp.float32(variant.bias_update_speed))
        rows = []
        for index in range(steps):
            windows = jnp.asarray(dataset.batch_at(index, batch_size=config.train.batch_size))
            state, metrics = step(state, windows, *weights)
            rows.append(jax.device_get({key: metrics[key] for key in ("loss", "maxvio", "loads")}))
        histories[name] = History(**{key: np.stack([row[key] for row in rows]) for key in rows[0]})
        progress(f"{name}: loss {histories[name].loss[-1]:.3f}, MaxVio {histories[name].maxvio[-1].mean():.2f}")
    return histories
