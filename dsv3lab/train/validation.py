"""The mean next-token loss on held-out windows, as training watches it: no gradient, no MTP."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsv3lab.model import LOCAL, DeepSeek, Execution
from dsv3lab.train.losses import shifted_targets, token_losses


def window_losses(
    model: DeepSeek, windows: Int[Array, "batch seq_plus_one"], *, chunk: int, execution: Execution = LOCAL
) -> Float[Array, " batch"]:
    """Mean next-token loss of each window, in nats per token."""
    hidden = model.forward(windows[:, :-1], execution=execution).hidden
    targets, _ = shifted_targets(windows, 0)
    losses = token_losses(hidden.reshape(-1, hidden.shape[-1]), model.output_matrix, targets.ravel(), chunk=chunk)
    return jnp.mean(losses.reshape(targets.shape), axis=1)


def sample(dataset: Any, *, weights: Mapping[str, float], count: int) -> dict[str, np.ndarray]:
    """About `count` validation windows: each domain's share by weight (at least one), spread evenly over the domain.

    Args:
        dataset: a `dsv3lab.data.Dataset`.
        weights: share of each domain, before normalisation; domains of weight 0 are left out.
        count: windows in total.

    Returns:
        domain -> windows [n, seq + 1].
    """
    chosen = {}
    for domain in dataset.domains:
        share = weights[domain] / sum(weights.values())
        if share > 0:
            windows = np.asarray(dataset.validation(domain).windows)
            number = min(len(windows), max(1, round(count * share)))
            chosen[domain] = windows[np.linspace(0, len(windows) - 1, number).astype(int)]
    return chosen


def batches(windows: np.ndarray, size: int) -> list[tuple[np.ndarray, int]]:
    """Batches of exactly `size` windows, the last one filled by repetition, each with the number that counts."""
    parts = [windows[start : start + size] for start in range(0, len(windows), size)]
    return [(np.resize(part, (size, windows.shape[1])), len(part)) for part in parts]


def mean_loss(losses: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Mean of the domains' losses, weighted as in training, in nats per token."""
    return sum(weights[d] * loss for d, loss in losses.items()) / sum(weights[d] for d in losses)
