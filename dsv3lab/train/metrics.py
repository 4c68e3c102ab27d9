"""What a step is measured by: losses, balance of the experts, and the clock."""

import time
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsv3lab.measure import summary
from dsv3lab.train.losses import Losses


def maxvio(loads: Int[Array, "layers experts"]) -> Float[Array, " layers"]:
    """Load of the busiest expert of each layer above the mean load, as a share of the mean (arXiv:2408.15664, 4.1).

    0 is perfect balance; experts - 1 is everything on one expert. A layer without any load counts as 0.
    """
    mean = jnp.mean(loads.astype(jnp.float32), axis=-1)
    return jnp.max(loads, axis=-1) / jnp.maximum(mean, 1e-9) - (mean > 0)


def dead_experts(loads: Int[Array, "layers experts"]) -> Int[Array, ""]:
    """Experts, of all layers, that received no token."""
    return jnp.sum(loads == 0, dtype=jnp.int32)


def of_step(parts: Losses, *, grad_norm: Float[Array, ""], lr: Float[Array, ""]) -> dict[str, Array]:
    """The metrics of one step.

    Returns:
        `loss`, `mtp_loss`, `balance_loss` (see `Losses`: without lambda and alpha), `total`, `grad_norm` (before
        clipping), `lr`, `maxvio` [layers], `dead_experts` and `loads` [layers, experts].
    """
    return {
        "loss": parts.main,
        "mtp_loss": parts.mtp,
        "balance_loss": parts.balance,
        "total": parts.total,
        "grad_norm": grad_norm,
        "lr": lr,
        "maxvio": maxvio(parts.loads),
        "dead_experts": dead_experts(parts.loads),
        "loads": parts.loads,
    }


def of_report(step: dict[str, Array]) -> dict[str, float]:
    """The metrics of one step under the names that a run reports, as plain numbers.

    Of the loads: the lowest and the highest of each MoE layer (MTP modules last), as multiples of the layer's mean.
    """
    violation, loads = np.asarray(step["maxvio"]), np.asarray(step["loads"], np.float64)
    shares = loads / np.maximum(loads.mean(axis=1, keepdims=True), 1)
    extremes = {
        f"train/load_{name}/moe_{layer}": float(value)
        for name, of in (("lowest", shares.min), ("highest", shares.max))
        for layer, value in enumerate(of(axis=1) if shares.size else ())
    }
    return {
        "train/loss": float(step["loss"]),
        "train/mtp_loss": float(step["mtp_loss"]),
        "train/balance_loss": float(step["balance_loss"]),
        "train/total": float(step["total"]),
        "train/grad_norm": float(step["grad_norm"]),
        "train/lr": float(step["lr"]),
        "train/maxvio": float(violation.mean()) if violation.size else 0.0,
        "train/maxvio_worst_layer": float(violation.max()) if violation.size else 0.0,
        "train/dead_experts": float(step["dead_experts"]),
        **extremes,
    }


@dataclass
class Clock:
    """Step times of this process, compilation, validation and checkpoints excluded.

    flops_per_token: useful matmul FLOPs of one token, forward and backward, see `plan.flops_per_token`.
    peak_flops: FLOP/s of this process's fastest matmul, see `measure.matmul_peak`.
    began: `time.perf_counter()` when this process's training was called.
    """

    flops_per_token: int
    peak_flops: float
    began: float
    steps_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    tokens: int = 0

    def add(self, *, step_s: float, wait_s: float, tokens: int) -> None:
        """Note one step: its whole time, how much of it was spent waiting for the batch, and the targets in it."""
        self.tokens += tokens
        self.steps_s.append(step_s)
        self.waits_s.append(wait_s)

    def metrics(self) -> dict[str, float]:
        """Speed over all steps so far, and `perf/goodput`.

        Goodput is the share of the wall-clock time since `began` in which an optimizer step computed. What it lacks is
        start, restore, compilation, measuring the peak, waiting for batches, validation and checkpoints.
        """
        times = summary(self.steps_s)
        goodput = (sum(self.steps_s) - sum(self.waits_s)) / (time.perf_counter() - self.began)
        tokens_per_s = self.tokens / sum(self.steps_s)
        return {
            "perf/tokens_per_s": tokens_per_s,
            "perf/step_time_p50_s": times.median_s,
            "perf/step_time_p95_s": times.p95_s,
            "perf/goodput": goodput,
            "perf/data_wait_fraction": sum(self.waits_s) / sum(self.steps_s),
            "perf/matmul_peak_flops": self.peak_flops,
            "perf/peak_fraction": tokens_per_s * self.flops_per_token / self.peak_flops,
        }
