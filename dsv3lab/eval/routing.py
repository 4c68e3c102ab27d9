"""Whether another number format, or another number of devices, sends tokens to other experts, and which tokens these are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsv3lab.config import ModelConfig
from dsv3lab.model import LOCAL, DeepSeek, Execution

SLACK = 1e-6
"""Rounding of a biased score and of the sum of two in float32: margins below it say nothing."""


@dataclass(frozen=True)
class Choices:
    """The experts of every token in each MoE layer, and the scores that they were chosen by.

    ids: chosen experts, in ascending order [layers, tokens, top].
    biased: scores plus router bias, as the selection compares them [layers, tokens, experts].
    """

    ids: np.ndarray
    biased: np.ndarray

    def same_set(self, other: "Choices") -> np.ndarray:
        """Where both chose the same set of experts [layers, tokens]."""
        return (self.ids == other.ids).all(axis=-1)

    def moved(self, other: "Choices") -> np.ndarray:
        """The most that any biased score of a token differs [layers, tokens]."""
        return np.abs(self.biased.astype(np.float64) - other.biased).max(axis=-1)


def choose(
    model: DeepSeek,
    windows: Int[Array, "batch seq_plus_one"],
    *,
    ways: int = 1,
    execution: Execution = LOCAL,
    sum_data: Callable[[Any], Any] = lambda tree: tree,
    mean_data: Callable[[Any], Any] = lambda tree: tree,
    shard: Callable[[], Int[Array, ""] | int] = lambda: 0,
) -> tuple[DeepSeek, dict[str, Array]]:
    """A step for `parallel.data_parallel`, or for one device, that routes and changes nothing.

    Args:
        model: the network.
        windows: this device's share of the batch.
        ways: devices that share the batch.
        execution: how the model's mathematics is carried out.
        sum_data: sum over the devices; each fills its own place in an array of zeros, so that the sum gathers them.
        mean_data: mean over the devices; nothing is averaged here.
        shard: number of this device.

    Returns:
        the model as it is, and `ids` [layers, ways, tokens, top] and `scores` [layers, ways, tokens, experts].
    """
    del mean_data
    names = tuple(name.removesuffix(".ids") for name in model.capture_names() if name.endswith("router.ids"))
    wanted = frozenset(f"{name}.{part}" for name in names for part in ("ids", "scores"))
    taken = model.forward(windows[:, :-1], mtp=bool(model.mtp), capture=wanted, execution=execution).captured
    found = {part: jnp.stack([taken[f"{name}.{part}"] for name in names]) for part in ("ids", "scores")}

    def placed(own: Array) -> Array:
        mine = (jnp.arange(ways) == shard())[None, :, None, None]
        return jnp.where(mine, own[:, None], jnp.zeros((), own.dtype))

    return model, sum_data({part: placed(own) for part, own in found.items()})


def choices(model: DeepSeek, found: dict[str, Array]) -> Choices:
    """What `choose` found, with the devices' tokens one after the other and the router biases added."""
    ids, scores = (np.asarray(found[part]) for part in ("ids", "scores"))
    layers = ids.shape[0]
    ids, scores = ids.reshape(layers, -1, ids.shape[-1]), scores.reshape(layers, -1, scores.shape[-1])
    bias = np.asarray(model.bias())
    return Choices(ids=np.sort(ids, axis=-1), biased=scores + bias[:, None] if bias.size else scores)


def margins(
    biased: Float[np.ndarray, "layers tokens experts"], config: ModelConfig
) -> Float[np.ndarray, "layers tokens"]:
    """How far every biased score of a token may move, in any direction, before its set of experts can change.

    Two experts change places when their scores together move by the gap between the last chosen one and the best of
    the others within reach: half of it each. Two groups do so when their sums of the best `n` experts move by the gap
    between the last group within reach and the first beyond it: 1 / (2 n) of it for each score. The margin is the
    smaller of the two.
    """
    scores = np.asarray(biased, np.float64)
    groups, reach, top = config.n_group, config.topk_group, config.num_experts_per_tok
    free = np.full(scores.shape[:-1], np.inf)
    if reach < groups:
        best = 1 if config.topk_method == "group_limited_greedy" else 2
        grouped = scores.reshape(*scores.shape[:-1], groups, -1)
        sums = np.sort(grouped, axis=-1)[..., -best:].sum(axis=-1)
        order = np.argsort(-sums, axis=-1, kind="stable")
        ordered = np.take_along_axis(sums, order, axis=-1)
        free = (ordered[..., reach - 1] - ordered[..., reach]) / (2 * best)
        rank = np.argsort(order, axis=-1)
        scores = np.where((rank < reach)[..., None], grouped, -np.inf).reshape(scores.shape)
    ordered = -np.sort(-scores, axis=-1)
    if top == ordered.shape[2]:
        return free
    return np.minimum(free, (ordered[..., top - 1] - ordered[..., top]) / 2)


def unexplained(reference: Choices, other: Choices, config: ModelConfig) -> int:
    """Choices that changed although no score moved as far as the margin: what no near tie explains."""
    certain = reference.moved(other) < margins(reference.biased, config) - SLACK
    return int((certain & ~reference.same_set(other)).sum())
