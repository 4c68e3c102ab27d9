"""The training objective: next-token loss, multi-token prediction and balance (DeepSeek-V3 report, 2.1.2 and 2.2).

The two vocabulary losses are a quarter of a step at toy size, so their logits are computed once: the forward rule of
`vocabulary_loss` makes the gradients chunk by chunk while the chunk's logits are still in the cache, and the backward
rule only scales them. Neither the logits nor their gradient ever exist for more than one chunk of tokens.
"""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dsv3lab.config import LossConfig
from dsv3lab.model import LOCAL, DeepSeek, Execution, Output, align


def token_losses(
    hidden: Float[Array, "tokens width"],
    head: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    *,
    chunk: int,
) -> Float[Array, " tokens"]:
    """Negative log-likelihood of each target in nats, with the logits of at most `chunk` tokens alive at once."""
    nll = jax.lax.map(lambda part: _nll(*part, head=head)[0], _chunks((hidden, targets), chunk))
    return nll.reshape(-1)[: hidden.shape[0]]


def vocabulary_loss(
    hidden: Float[Array, "tokens width"],
    head: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    weights: Float[Array, " tokens"],
    *,
    chunk: int,
) -> Float[Array, ""]:
    """Sum of `weights` times the negative log-likelihood of `targets`, in nats.

    Args:
        hidden: normalised hidden states, one for each prediction.
        head: output projection.
        targets: the token that each hidden state should predict.
        weights: factor of each term (0 leaves it out); treated as constant by differentiation.
        chunk: tokens whose logits exist at once; the result does not depend on it beyond rounding.
    """
    hidden, head, targets, weights = align(hidden, head, targets, weights)
    return _vocabulary_loss(hidden, head, targets, jax.lax.stop_gradient(weights), chunk)


@ft.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _vocabulary_loss(hidden: Array, head: Array, targets: Array, weights: Array, chunk: int) -> Array:
    return jnp.sum(weights * token_losses(hidden, head, targets, chunk=chunk))


def _vocabulary_loss_forward(hidden: Array, head: Array, targets: Array, weights: Array, chunk: int) -> Any:
    def body(d_head: Array, part: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        h, t, w = part
        nll, probability, hit = _nll(h, t, head=head)
        d_logits = (probability * w[:, None] - jnp.where(hit, w[:, None], 0.0)).astype(h.dtype)
        d_head = d_head + jnp.matmul(h.T, d_logits, preferred_element_type=jnp.float32)
        return d_head, (jnp.sum(w * nll), d_logits @ head.T.astype(h.dtype))

    start, _ = align(jnp.zeros(head.shape, jnp.float32), targets)
    d_head, (losses, d_hidden) = jax.lax.scan(body, start, _chunks((hidden, targets, weights), chunk))
    d_hidden = d_hidden.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    return jnp.sum(losses), (d_hidden.astype(hidden.dtype), d_head.astype(head.dtype))


def _vocabulary_loss_backward(chunk: int, residuals: tuple[Array, Array], cotangent: Array) -> Any:
    d_hidden, d_head = residuals
    return (cotangent * d_hidden).astype(d_hidden.dtype), cotangent * d_head, None, None


_vocabulary_loss.defvjp(_vocabulary_loss_forward, _vocabulary_loss_backward)


def _nll(hidden: Array, targets: Array, *, head: Array) -> tuple[Array, Array, Array]:
    """Of one chunk: losses [tokens], probabilities [tokens, vocab] and where the target is [tokens, vocab]."""
    logits = jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    hit = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 1) == targets[:, None]
    largest = jnp.max(logits, axis=-1, keepdims=True)
    exponential = jnp.exp(logits - largest)
    total = jnp.sum(exponential, axis=-1, keepdims=True)
    nll = (jnp.log(total) + largest)[:, 0] - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    return nll, exponential / total, hit


def _chunks(arrays: tuple[Array, ...], chunk: int) -> Any:
    """Each array [tokens, ...] as [chunks, chunk, ...], padded with zeros (so with weight 0) at the end."""
    tokens = arrays[0].shape[0]
    chunk = min(chunk, tokens)
    padding = -tokens % chunk
    padded = (jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)) if padding else a for a in arrays)
    return tuple(a.reshape(-1, chunk, *a.shape[1:]) for a in padded)


class Losses(eqx.Module):
    """The parts of the objective over one batch, in nats where they are likelihoods.

    total: the objective, as differentiated.
    main: mean next-token loss.
    mtp: mean over depths of L_MTP^k (Eq. 24), without lambda; 0 without MTP modules.
    balance: `Output.balance`, without alpha: 1 for each MoE layer whose router is uniform (Eq. 17-20).
    loads: tokens that each expert of each MoE layer received, main layers first, then MTP modules.
    """

    total: Float[Array, ""]
    main: Float[Array, ""]
    mtp: Float[Array, ""]
    balance: Float[Array, ""]
    loads: Int[Array, "layers experts"]


def shifted_targets(
    windows: Int[Array, "batch seq_plus_one"], depth: int
) -> tuple[Int[Array, "batch seq"], Float[Array, "batch seq"]]:
    """Targets of prediction depth `depth` (0: the main model) and 1 where they exist, 0 beyond the end.

    Position i (from 0) of depth k predicts window token i + k + 1 (Eq. 23: P_{i+k+1}^k), so the last k positions of
    depth k have no target; they get token 0 and mask 0.
    """
    length = windows.shape[1] - 1
    targets = jnp.pad(windows[:, depth + 1 :], ((0, 0), (0, depth)))
    mask = (jnp.arange(length) < length - depth).astype(jnp.float32)
    return targets, jnp.broadcast_to(mask, targets.shape)


def of_output(
    output: Output,
    head: Float[Array, "width vocab"],
    windows: Int[Array, "batch seq_plus_one"],
    *,
    config: LossConfig,
) -> tuple[Float[Array, ""], Losses]:
    """The objective L_main + lambda / D * sum_k L_MTP^k + alpha * balance (Eq. 25 and 17) of a forward pass.

    Every depth divides by T, the length of the sequence, although depth k has only T - k terms (Eq. 24).

    Returns:
        the total, to be differentiated, and its parts.
    """
    batch, length, width = output.hidden.shape
    by_depth = []
    for depth, hidden in enumerate((output.hidden, *output.mtp)):
        targets, mask = shifted_targets(windows, depth)
        weights = mask.ravel() / (batch * length)
        flat = hidden.reshape(-1, width)
        by_depth.append(vocabulary_loss(flat, head, targets.ravel(), weights, chunk=config.vocab_chunk))
    main, *mtp = by_depth
    mtp_mean = sum(mtp[1:], mtp[0]) / len(mtp) if mtp else 0.0 * main
    total = main + config.mtp_weight * mtp_mean + config.balance_alpha * output.balance + _auxiliary(output, config)
    return total, Losses(total=total, main=main, mtp=mtp_mean, balance=output.balance, loads=output.loads)


def _auxiliary(output: Output, config: LossConfig) -> Float[Array, ""]:
    """The balance losses of other papers with their weights; those of weight 0 leave no trace in the program.

    A weight that is an argument of the program stays in it.
    """
    weights = {
        "switch": config.switch_alpha,
        "expert": config.expert_alpha,
        "device": config.device_alpha,
        "communication": config.communication_alpha,
    }
    kept = {name: weight for name, weight in weights.items() if isinstance(weight, jax.Array) or weight}
    terms = [weight * getattr(output.auxiliary, name) for name, weight in kept.items()]
    return sum(terms, jnp.zeros(()))


def compute(
    model: DeepSeek,
    windows: Int[Array, "batch seq_plus_one"],
    *,
    config: LossConfig,
    key: PRNGKeyArray | None = None,
    execution: Execution = LOCAL,
) -> tuple[Float[Array, ""], Losses]:
    """The objective of `model` on `windows`, see `of_output`; `key` is that of the dropouts."""
    output = model.forward(windows[:, :-1], mtp=True, key=key, execution=execution)
    return of_output(output, model.output_matrix, windows, config=config)


def terms(
    model: DeepSeek, windows: Int[Array, "batch seq_plus_one"], *, chunk: int, execution: Execution = LOCAL
) -> Float[Array, "depths batch seq"]:
    """Every single term of the vocabulary losses in nats, depth 0 (the main model) first; 0 beyond the end.

    What `compute` sums, before the sum: to see which token influences which prediction.
    """
    output = model.forward(windows[:, :-1], mtp=True, execution=execution)
    rows = []
    for depth, hidden in enumerate((output.hidden, *output.mtp)):
        targets, mask = shifted_targets(windows, depth)
        nll = token_losses(hidden.reshape(-1, hidden.shape[-1]), model.output_matrix, targets.ravel(), chunk=chunk)
        rows.append(nll.reshape(mask.shape) * mask)
    return jnp.stack(rows)
