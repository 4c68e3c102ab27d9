"""AdamW with a decay mask, global-norm clipping and the report's learning-rate shape (DeepSeek-V3 report, 4.2)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dsv3lab.config import TrainConfig


def schedule(config: TrainConfig, sequence_length: int) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """Step (from 0) -> learning rate: linear warm-up, constant, cosine, constant, lower constant.

    The corners are fractions of the tokens of the whole run, which are those of its steps where the batch does not grow.
    Update number n = step + 1 is what is counted, so the first update is not wasted on a rate of 0 and the last one lies
    at the end of the budget.
    """
    total, shape = config.steps(sequence_length), config.schedule
    done_before = share_done(config, sequence_length)

    def learning_rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        done = done_before(jnp.asarray(step) + 1)
        warm = shape.peak_lr * done / max(shape.warmup, 1 / total)
        along = jnp.clip((done - shape.constant) / max(shape.cosine - shape.constant, 1 / total), 0.0, 1.0)
        fall = shape.final_lr + (shape.peak_lr - shape.final_lr) * 0.5 * (1 + jnp.cos(math.pi * along))
        body = jnp.minimum(warm, fall)
        return jnp.where(done > shape.tail, shape.tail_lr, body).astype(jnp.float32)

    return learning_rate


def share_done(config: TrainConfig, sequence_length: int) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """Step (from 0) -> share of the run's tokens that were taken before it, in float32."""
    ramp = config.ramp(sequence_length)
    windows, last = ramp.windows(ramp.steps), len(ramp.pieces) - 1
    if not last:
        return lambda step: step / ramp.steps

    def share(step: Int[Array, ""]) -> Float[Array, ""]:
        parts = [
            jnp.clip(step - piece.step, 0, None if number == last else piece.steps) * (piece.batch_size / windows)
            for number, piece in enumerate(ramp.pieces)
        ]
        return sum(parts[1:], parts[0])

    return share


def decay_mask(params: Any) -> Any:
    """Tree of bool: whether weight decay acts on a leaf.

    It acts on matrices that multiply: projections, experts, routers, the MTP projection and the head. Not on the
    scales of norms, and not on the embedding, whose rows would shrink at every step in which their token does not
    occur. The report does not publish its exclusions: these are this project's. The router bias is False too, although
    the optimizer never sees it (`dsv3lab.model.trainable`).
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _decays(path), params)


def _decays(path: tuple[Any, ...]) -> bool:
    # By name and not by rank: the arrays of a stack carry a leading axis of layers, so a norm's scale is a matrix there.
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return names[-1] not in ("embedding", "bias") and not any(name.endswith("norm") for name in names)


def make(config: TrainConfig, sequence_length: int) -> optax.GradientTransformation:
    """Clip the gradient by its global norm, then AdamW with decoupled decay on the leaves of `decay_mask`."""
    options = config.optimizer
    learning_rate: Any = schedule(config, sequence_length)
    adam = optax.scale_by_adam(b1=options.b1, b2=options.b2, eps=options.eps)
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        adam if options.moments == "float32" else kept_in_bfloat16(adam),
        optax.add_decayed_weights(options.weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def kept_in_bfloat16(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """`adam` with both moments in bfloat16 between its updates, which compute in float32 (report 3.3.3).

    Optax has a dtype for the first moment only.
    """

    def cast(state: Any, dtype: Any) -> Any:
        moments = {name: jax.tree.map(lambda m: m.astype(dtype), getattr(state, name)) for name in ("mu", "nu")}
        return state._replace(**moments)

    def init(params: Any) -> Any:
        return cast(adam.init(params), jnp.bfloat16)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = adam.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, jnp.bfloat16)

    return optax.GradientTransformation(init, update)
