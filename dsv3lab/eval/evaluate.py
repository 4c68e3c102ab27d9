"""Validation loss, perplexity and bits per byte of a model, by domain and overall."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dsv3lab.config import EvalConfig
from dsv3lab.data import Dataset
from dsv3lab.eval.references import bits_per_byte
from dsv3lab.model import LOCAL, Execution


@runtime_checkable
class LanguageModel(Protocol):
    """What is needed of a model: `DeepSeek`, or anything that gives hidden states and logits like it."""

    def forward(self, tokens: Int[Array, "batch seq"], *, mtp: bool, execution: Execution) -> Any:
        """An object whose `hidden` is Float[batch, seq, d]."""
        ...

    def unembed(self, hidden: Float[Array, "*any d"]) -> Float[Array, "*any vocab"]:
        """Logits of hidden states."""
        ...


@dataclass(frozen=True)
class Score:
    """How well a model predicts some documents."""

    loss: float
    """Nats per token, end-of-document tokens included."""
    perplexity: float
    """exp(loss)."""
    bits_per_byte: float
    """Cost of all tokens, end-of-document included, per UTF-8 byte of the documents (which counts none for them)."""
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Evaluation:
    """Scores by domain, and overall.

    The overall loss and bits per byte are means of the domains' figures weighted by their training weights (not by how
    many bytes of each happened to be evaluated); the overall perplexity is exp of that loss; tokens and bytes are sums.
    """

    domains: dict[str, Score]
    overall: Score


def evaluate(
    model: LanguageModel,
    dataset: Dataset,
    *,
    config: EvalConfig,
    execution: Execution = LOCAL,
    progress: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluate the next-token predictions of `model` on the held-out documents of every domain.

    Args:
        model: what is evaluated, without its MTP modules.
        dataset: where the documents come from; windows have its context length and may begin inside a document.
        config: how much of the held-out text, and how many windows at once.
        execution: how the model computes.
        progress: receives one line for each domain.
    """
    scores: dict[str, Score] = {}
    for name in dataset.domains:
        started = time.monotonic()
        held_out = dataset.validation(name, every=config.every)
        nats, tokens = validation_loss(
            model, held_out.windows, targets=held_out.targets, batch_size=config.batch_size, execution=execution
        )
        scores[name] = _score(nats, tokens, sum(held_out.n_bytes))
        progress(
            f"eval {name}: {scores[name].bits_per_byte:.3f} bits per byte, loss {scores[name].loss:.3f}, "
            f"{tokens} tokens in {time.monotonic() - started:.1f} s"
        )
    return Evaluation(scores, overall(scores, dataset.weights))


def overall(scores: dict[str, Score], weights: dict[str, float]) -> Score:
    """The domains' scores under the weights of the training mixture (see `Evaluation`)."""
    loss = sum(weights[name] * score.loss for name, score in scores.items())
    return Score(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),  # a diverged model has a finite score, and a gate that fails
        bits_per_byte=sum(weights[name] * score.bits_per_byte for name, score in scores.items()),
        tokens=sum(score.tokens for score in scores.values()),
        bytes=sum(score.bytes for score in scores.values()),
    )


def validation_loss(
    model: LanguageModel,
    windows: np.ndarray,
    *,
    batch_size: int,
    targets: int | None = None,
    execution: Execution = LOCAL,
) -> tuple[float, int]:
    """Total next-token cost of consecutive windows.

    Args:
        model: what is evaluated.
        windows: int[n, T+1].
        batch_size: windows evaluated at once; the last batch is filled up, so that one program serves all.
        targets: how many of the n*T targets count, from the first; all by default.
        execution: how the model computes.

    Returns:
        The sum in nats, and the number of targets in it.
    """
    n, length = len(windows), windows.shape[1] - 1
    count = n * length if targets is None else targets
    counted = (np.arange(n * length) < count).reshape(n, length)
    total = 0.0
    for start in range(0, n, batch_size):
        rows = slice(start, start + batch_size)
        missing = batch_size - len(windows[rows])
        batch = jnp.asarray(np.pad(windows[rows], ((0, missing), (0, 0))), jnp.int32)
        mask = jnp.asarray(np.pad(counted[rows], ((0, missing), (0, 0))))
        total += float(np.asarray(_row_nats(model, batch, mask, execution), np.float64).sum())
    return total, count


@eqx.filter_jit
def _row_nats(
    model: LanguageModel,
    windows: Int[Array, "batch seq_and_one"],
    mask: Bool[Array, "batch seq"],
    execution: Execution,
) -> Float[Array, " batch"]:
    """Cost in nats of the counted targets of each window, in float32; rows are added on the host in float64."""
    hidden = model.forward(windows[:, :-1], mtp=False, execution=execution).hidden

    def row(inputs: tuple[Array, Array, Array]) -> Array:  # one window's logits at a time: vocabulary x T floats
        states, tokens, counted = inputs
        logits = model.unembed(states).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
        return jnp.sum(jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0))

    return jax.lax.map(row, (hidden, windows[:, 1:], mask))


def _score(nats: float, tokens: int, n_bytes: int) -> Score:
    loss = nats / tokens
    return Score(loss, math.exp(min(loss, 700.0)), bits_per_byte(nats, n_bytes=n_bytes), tokens, n_bytes)
