"""What a step does when numbers break, and how that is tried: the update is skipped, spikes are counted.

A gradient that holds a NaN or an infinity would end every weight. The update of such a step is left out whole: weights,
moments, their counts and router biases keep every bit, and only the position in the data goes on, so that the next
batch is another one. `nan_at` makes such a step on purpose.
"""

import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from dsv3lab.config import StabilityConfig

T = TypeVar("T")
NONFINITE, SPIKES = "train/nonfinite_steps", "train/spikes"
WATCHED = ("loss", "mtp_loss", "balance_loss", "total", "grad_norm")
"""Metrics of a step that `Health.step` reads."""


class Diverged(RuntimeError):
    """A training that cannot go on, since too many steps in a row had no finite objective and gradient."""


def usable(total: Float[Array, ""], grad_norm: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether a step may change anything: its objective and the global norm of its gradient are finite numbers."""
    return jnp.isfinite(total) & jnp.isfinite(grad_norm)


def choose(good: Bool[Array, ""], new: T, old: T) -> T:
    """`new` where the step was good, else `old` with every bit; both are trees of the same shapes."""
    return jax.tree.map(lambda after, before: jnp.where(good, after, before), new, old)


def updates_done(opt_state: optax.OptState) -> Int[Array, ""]:
    """Updates that the optimizer has made: the steps done less those that were skipped."""
    # The counts of optax's parts are equal, since a step is skipped whole.
    return optax.tree.get_all_with_path(opt_state, "count")[0][1]


def nan_at(step: Int[Array, ""], numbers: Sequence[int]) -> Callable[[Any], Any]:
    """A `mean_data` of `train_step` that makes the steps `numbers` (from 1, as they are reported) come out as NaN.

    As if the batch of that step had led to a gradient and losses that are not numbers, on any device.

    Args:
        step: steps done before this one, `TrainState.step`.
        numbers: the steps to spoil; none leaves every bit as it is.
    """
    if not numbers:
        return lambda tree: tree
    hit = jnp.any(step + 1 == jnp.asarray(numbers))
    return lambda tree: jax.tree.map(lambda leaf: jnp.where(hit, jnp.nan, leaf).astype(leaf.dtype), tree)


class Health:
    """What broke in the steps of a run: skipped updates, and losses that are spikes.

    A spike is a loss above `spike_factor` times the median of the last `spike_window` losses that the run reported.
    Reported ones, since a process that continues the run sees them again, and so counts the same.

    Args:
        config: how many skipped steps in a row are too many, and the spike rule.
        nonfinite: steps skipped so far; NaN if nobody knows.
        spikes: spikes so far.
    """

    def __init__(self, config: StabilityConfig, *, nonfinite: float = 0.0, spikes: float = 0.0) -> None:
        self.config, self.nonfinite, self.spikes = config, nonfinite, spikes
        self.in_a_row = 0
        self.loss: float | None = None
        """Loss of the newest step, or report, whose numbers are finite."""
        self._losses: deque[float] = deque(maxlen=config.spike_window)

    def reported(self, metrics: Mapping[str, float]) -> None:
        """Take a reported loss into the median; one that is not finite is left out."""
        loss = metrics.get("train/loss", float("nan"))
        if np.isfinite(loss):
            self._losses.append(loss)
            self.loss = loss if self.loss is None else self.loss

    def step(self, metrics: Mapping[str, Any], number: int) -> str:
        """Count step `number` of the run.

        Returns:
            one sentence if its update was skipped, else nothing.
        """
        values = {name: float(metrics[name]) for name in WATCHED}
        loss = values["loss"]
        self.spikes += bool(self._losses) and loss > self.config.spike_factor * statistics.median(self._losses)
        if np.isfinite((values["total"], values["grad_norm"])).all():
            self.in_a_row, self.loss = 0, loss
            return ""
        self.nonfinite += 1
        self.in_a_row += 1
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        side = "the backward pass, the losses are finite" if bad == ["grad_norm"] else "the forward pass"
        return (
            f"step {number}: not finite: {', '.join(bad)}; it began in {side}; the update was skipped, and debug=true "
            "names the first array that is not finite"
        )

    def check(self, number: int) -> None:
        """End a run that cannot go on.

        Raises:
            Diverged: if the updates up to step `number` were skipped too often in a row.
        """
        if self.in_a_row >= self.config.skipped_in_a_row:
            raise Diverged(
                f"step {number}: {self.in_a_row} steps in a row had no finite objective and gradient, the most that "
                "train.stability.skipped_in_a_row allows; run again with debug=true, which names the first array that is "
                "not finite, or lower train.schedule.peak_lr"
            )

    def metrics(self) -> dict[str, float]:
        """The counts of the whole run, for every report."""
        return {NONFINITE: self.nonfinite, SPIKES: float(self.spikes)}
