"""A long run whose every step is looked at, with one batch that is not a number: what gets over it, and what it leaves."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsv3lab.config import ModelConfig, RunConfig
from dsv3lab.train import guard, programs
from dsv3lab.train.difference import differing_elements
from dsv3lab.train.loop import execution_of
from dsv3lab.train.step import TrainState

SEEN = ("loss", "grad_norm", "maxvio", "total", "mtp_loss", "balance_loss")


@dataclass(frozen=True)
class Endurance:
    """What a run went through, one number for each step, and what the spoilt step left.

    loss: next-token loss, nats per token [steps]; NaN in the spoilt step.
    grad_norm: global norm of the gradient before clipping [steps]; NaN in the spoilt step.
    maxvio: mean of MaxVio over the MoE layers [steps].
    seconds: wall-clock time of the step, compilation excluded [steps].
    spoilt: the step (from 1) that was made NaN.
    nonfinite: steps whose objective or gradient norm was not finite, the spoilt one among them.
    spikes: steps whose loss was a spike, see `guard.Health`.
    changed: elements of weights, moments, counts and router biases whose bits the spoilt step changed.
    elements: elements that were compared.
    """

    loss: np.ndarray
    grad_norm: np.ndarray
    maxvio: np.ndarray
    seconds: np.ndarray
    spoilt: int
    nonfinite: int
    spikes: int
    changed: int
    elements: int

    def mean_loss(self, first: int, last: int) -> float:
        """Mean loss of the steps `first` to `last` (from 1, both included), those that are not finite left out."""
        return float(np.nanmean(self.loss[first - 1 : last]))

    def norm_over_median(self, after: int) -> float:
        """The largest gradient norm after step `after` as a multiple of their median; what is not finite is left out."""
        norms = self.grad_norm[after:]
        norms = norms[np.isfinite(norms)]
        return float(norms.max() / np.median(norms))


def small_model(config: RunConfig) -> ModelConfig:
    """The configured model with the layers and the width that the study gives the stability run; heads and ranks shrink alike."""
    model, study = config.model, config.study
    share = study.stability_width / model.hidden_size

    def shrunk(size: int) -> int:
        return max(2, 2 * round(size * share / 2))  # rotary pairs need an even width

    sizes = {
        name: shrunk(getattr(model, name))
        for name in ("intermediate_size", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    }
    return replace(
        model,
        hidden_size=study.stability_width,
        num_hidden_layers=study.stability_layers,
        q_lora_rank=None if model.q_lora_rank is None else shrunk(model.q_lora_rank),
        moe_intermediate_size=shrunk(model.moe_intermediate_size),
        **sizes,
    )


def endure(
    model: ModelConfig,
    config: RunConfig,
    dataset: Any,
    *,
    steps: int,
    spoilt: int,
    observe: Callable[[int, dict[str, float]], None],
    progress: Callable[[str], None] = print,
) -> Endurance:
    """Train `model` with the step that `fit` runs, one batch of which leads to NaN, and look at every step.

    Windows are cut to the study's length; the schedule is that of the configuration, fitted into `steps`.

    Args:
        model: what is trained.
        config: data, training recipe and the sizes of the study.
        dataset: a `dsv3lab.data.Dataset`.
        steps: optimizer steps.
        spoilt: the step (from 1) that is made NaN, see `guard.nan_at`.
        observe: receives every step's number and metrics.
        progress: receives one line for each tenth of the run.

    Raises:
        ValueError: if `spoilt` is not within the run.
        Diverged: if too many steps in a row had no finite gradient.
    """
    if not 1 <= spoilt <= steps:
        raise ValueError(f"endure: step {spoilt} is to be spoilt, and there are the steps 1 to {steps}")
    batch, length = config.study.stability_batch_size, config.study.stability_length
    train = replace(config.train, tokens=steps * batch * length, batch_size=batch, micro_batch=batch)
    step = programs.step(model, train, length=length, execution=execution_of(config), nan_at=(spoilt,))
    state = TrainState.init(model, train, sequence_length=length)
    health, rows, seconds, changed, elements = guard.Health(train.stability), [], [], 0, 0
    for number in range(1, steps + 1):
        windows = jnp.asarray(dataset.batch_at(number - 1, batch_size=batch)[:, : length + 1])
        before = _copy(state) if number == spoilt else None  # the step takes its buffers
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, windows))
        seconds.append(time.perf_counter() - started)
        if before is not None:
            after = _copy(state)
            changed = differing_elements(before, after)
            elements = sum(leaf.size for leaf in jax.tree.leaves(after))
        found = {name: float(np.mean(value)) for name, value in jax.device_get({n: metrics[n] for n in SEEN}).items()}
        if skipped := health.step(found, number):
            progress(skipped)
            health.check(number)
        health.reported({"train/loss": found["loss"]})
        observe(number, found)
        rows.append([found[name] for name in ("loss", "grad_norm", "maxvio")])
        if number % max(1, steps // 10) == 0:
            progress(f"step {number}/{steps}: loss {found['loss']:.3f}, gradient norm {found['grad_norm']:.3f}")
    loss, grad_norm, maxvio = np.array(rows, np.float64).T
    return Endurance(
        loss=loss,
        grad_norm=grad_norm,
        maxvio=maxvio,
        seconds=np.array(seconds),
        spoilt=spoilt,
        nonfinite=int(health.nonfinite),
        spikes=int(health.spikes),
        changed=changed,
        elements=elements,
    )


def _copy(state: TrainState) -> Any:
    """Weights, moments, counts and router biases of a state, in memory of their own."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), (state.model, state.opt_state))
