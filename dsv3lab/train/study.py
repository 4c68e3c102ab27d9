"""Short trainings side by side: the same batches, and only what a variant names differs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsv3lab.config import ModelConfig, RunConfig
from dsv3lab.train.loop import execution_of, use_compilation_cache
from dsv3lab.train.step import TrainState, train_step
from dsv3lab.train.turns import in_turns

Weights = Float[Array, " 3"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One training.

    model: what is trained.
    seed: of its first weights; variants with the same model and seed start equal.
    balance_alpha: weight of the sequence-wise loss (report, Eq. 17).
    switch_alpha: weight of the Switch loss (arXiv:2101.03961), over the whole batch: one device, one micro-batch.
    bias_update_speed: gamma of the bias update (report, 2.1.2).
    """

    model: ModelConfig
    seed: int
    balance_alpha: float = 0.0
    switch_alpha: float = 0.0
    bias_update_speed: float = 0.0


@dataclass(frozen=True)
class History:
    """What one short training went through, one row for each step.

    loss: next-token loss, nats per token [steps].
    maxvio: MaxVio of each MoE layer [steps, layers].
    loads: tokens of each expert of each MoE layer [steps, layers, experts].
    bias: selection bias of each expert after the step [steps, layers, experts].
    seconds: wall-clock time of the step, compilation excluded [steps].
    """

    loss: np.ndarray
    maxvio: np.ndarray
    loads: np.ndarray
    bias: np.ndarray
    seconds: np.ndarray


def compare(
    config: RunConfig,
    dataset: Any,
    variants: Mapping[str, Variant],
    *,
    steps: int,
    progress: Callable[[str], None] = print,
) -> dict[str, History]:
    """Train all variants step by step in turns, each step of all on the same batch.

    So a slow minute of the machine hits all alike. Variants of one model run one compiled program, which takes the
    weights of the balance terms as arguments: nothing else can differ between them.

    Args:
        config: data and training; its own model, seed and balance weights are replaced by those of each variant.
        dataset: a `dsv3lab.data.Dataset`.
        variants: name -> what is trained, and how.
        steps: optimizer steps of each.
        progress: receives a line for each compiled program and five times on the way.
    """
    use_compilation_cache()
    execution, length, batch = execution_of(config), config.data.sequence_length, config.train.batch_size

    def step(
        state: TrainState, windows: Int[Array, "batch seq_plus_one"], weights: Weights
    ) -> tuple[TrainState, dict[str, Array], Float[Array, "layers experts"]]:
        names = ("balance_alpha", "switch_alpha", "bias_update_speed")
        loss: Any = replace(config.train.loss, **dict(zip(names, weights, strict=True)))
        train = replace(config.train, loss=loss)
        state, metrics = train_step(state, windows, config=train, sequence_length=length, execution=execution)
        return state, metrics, state.model.bias()

    weights = {
        name: jnp.asarray([one.balance_alpha, one.switch_alpha, one.bias_update_speed])
        for name, one in variants.items()
    }
    starts = {
        (one.model, one.seed): TrainState.init(one.model, replace(config.train, seed=one.seed), sequence_length=length)
        for one in variants.values()
    }
    states = {name: starts[one.model, one.seed] for name, one in variants.items()}
    programs: dict[ModelConfig, Any] = {}
    windows = jnp.asarray(dataset.batch_at(0, batch_size=batch))
    for name, one in variants.items():
        if one.model not in programs:
            programs[one.model] = jax.jit(step).lower(states[name], windows, weights[name]).compile()
            progress(f"compiled the model of '{name}'")

    turns = {name: _weighed(programs[one.model], weights[name]) for name, one in variants.items()}
    rows: list[dict[str, tuple[Any, ...]]] = []
    for done, row in in_turns(turns, states, dataset, batch_size=batch, steps=steps, read=_seen):
        rows.append(row)
        if done % max(1, steps // 5) == 0:
            losses = [one[0] for one in row.values()]
            progress(f"step {done} of {steps}: losses {min(losses):.3f} to {max(losses):.3f}")
    return {name: History(*map(np.stack, zip(*(row[name] for row in rows), strict=True))) for name in variants}


def _weighed(program: Callable[..., Any], weights: Weights) -> Callable[..., Any]:
    return lambda state, windows: program(state, windows, weights)


def _seen(metrics: dict[str, Array], bias: Array) -> tuple[Array, ...]:
    return metrics["loss"], metrics["maxvio"], metrics["loads"], bias
