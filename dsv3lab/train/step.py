"""One optimizer step as a pure function: gradients over micro-batches, AdamW, and the router-bias update."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dsv3lab.config import ModelConfig, TrainConfig
from dsv3lab.model import LOCAL, DeepSeek, Execution, align, init, trainable
from dsv3lab.train import guard, losses, metrics, optimizer


class TrainState(eqx.Module):
    """Everything that a step changes.

    model: parameters, and the router biases, which the optimizer never sees.
    opt_state: the state of `optimizer.make`, over the trainable leaves only.
    step: optimizer steps done; it is also the position in the data, since a batch is a function of the step.
    """

    model: DeepSeek
    opt_state: optax.OptState
    step: Int[Array, ""]

    @staticmethod
    def init(
        model: ModelConfig, train: TrainConfig, *, sequence_length: int, key: PRNGKeyArray | None = None
    ) -> "TrainState":
        """A fresh state; `key` defaults to the one of `train.seed`."""
        start = init(model, key=jax.random.key(train.seed) if key is None else key)
        return TrainState.of(start, train, sequence_length=sequence_length)

    @staticmethod
    def abstract(model: ModelConfig, train: TrainConfig, *, sequence_length: int) -> Any:
        """The same tree with shapes and types in place of arrays: what a checkpoint is restored into."""
        options = {"sequence_length": sequence_length}
        return jax.eval_shape(lambda: TrainState.of(DeepSeek.init(model, key=jax.random.key(0)), train, **options))

    @staticmethod
    def of(model: DeepSeek, train: TrainConfig, *, sequence_length: int) -> "TrainState":
        """A fresh state around an existing model."""
        params, _ = split(model)
        transformation: Any = optimizer.make(train, sequence_length)
        opt_state = transformation.init(params)
        return TrainState(model=model, opt_state=opt_state, step=jnp.zeros((), jnp.int32))


def split(model: DeepSeek) -> tuple[DeepSeek, DeepSeek]:
    """The model's trainable leaves and its other leaves (the router biases), `None` in each other's places."""
    return eqx.partition(model, trainable(model))


def bias_update(
    bias: Float[Array, "layers experts"], loads: Int[Array, "layers experts"], *, speed: float | Float[Array, ""]
) -> Float[Array, "layers experts"]:
    """Raise the bias of underloaded experts by `speed` and lower that of overloaded ones (report, 2.1.2).

    `loads` must be summed over the whole batch first: the sign of a sum is not the sum of signs. An expert exactly at
    the mean stays (sign(0) = 0; the report leaves it open). With `speed` 0 every bit stays.
    """
    # Compared in integers, so exactly: load < mean + rest / experts, without a product that could overflow.
    mean, rest = jnp.divmod(jnp.sum(loads, axis=-1, keepdims=True), loads.shape[-1])
    direction = jnp.where(loads == mean, jnp.sign(rest), jnp.sign(mean - loads))
    return bias + speed * direction.astype(bias.dtype)


def gradients(
    model: DeepSeek,
    windows: Int[Array, "batch seq_plus_one"],
    *,
    config: TrainConfig,
    key: PRNGKeyArray | None = None,
    execution: Execution = LOCAL,
) -> tuple[DeepSeek, losses.Losses]:
    """Mean gradient and losses over `windows`, taken `config.micro_batch` at once, one part after the other.

    Fewer windows than that (the share of one of many devices) are taken one at a time. Inside `shard_map` gradient and
    losses are those of this device's windows: nothing is summed over devices here. `key` is that of the dropouts, split
    for the parts.

    Returns:
        the gradient of the trainable leaves (`None` elsewhere), and the losses with the loads summed over the parts.

    Raises:
        ConfigError: if this device's windows do not split into micro-batches.
    """
    count = config.micro_batches(windows.shape[0])
    params, rest = split(model)
    # A weight shared by all devices would get its gradient summed over them within every micro-batch. Marked as
    # varying like the data, it gets this device's gradient, and the caller communicates once for the whole batch.
    params = jax.tree.map(lambda leaf: align(leaf, windows)[0], params)

    def objective(params: DeepSeek, part: Array, key: PRNGKeyArray | None) -> tuple[Array, losses.Losses]:
        return losses.compute(eqx.combine(params, rest), part, config=config.loss, key=key, execution=execution)

    def one(part: Array, key: PRNGKeyArray | None) -> tuple[DeepSeek, losses.Losses]:
        return jax.grad(objective, has_aux=True)(params, part, key)

    if count == 1:
        return one(windows, key)
    parts = windows.reshape(count, -1, windows.shape[1])
    keys = None if key is None else jax.random.split(key, count)
    zeros = jax.tree.map(
        lambda leaf: align(jnp.zeros(leaf.shape, leaf.dtype), windows)[0], jax.eval_shape(one, parts[0], key)
    )
    sums, _ = jax.lax.scan(lambda carry, xs: (jax.tree.map(jnp.add, carry, one(*xs)), None), zeros, (parts, keys))
    # The parts are equal, so the mean of their means is the mean of the batch. Counts (the integers) stay sums.
    return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf / count, sums)


def apply(
    state: TrainState, grads: DeepSeek, parts: losses.Losses, *, config: TrainConfig, sequence_length: int
) -> tuple[TrainState, dict[str, Array]]:
    """Update parameters and router biases from the gradient and the loads of the whole batch.

    Where the objective or the gradient's norm is not finite, nothing changes but the step, see `guard`.

    Returns:
        the next state and the step's metrics, see `metrics.of_step`.
    """
    params, rest = split(state.model)
    transformation: Any = optimizer.make(config, sequence_length)  # optax's types do not know eqx.Module as a tree
    updates, opt_state = transformation.update(grads, state.opt_state, params)
    model: DeepSeek = eqx.combine(eqx.apply_updates(params, updates), rest)
    if model.bias().size:
        model = model.with_bias(bias_update(model.bias(), parts.loads, speed=config.loss.bias_update_speed))
    norm: Any = optax.tree.norm(jax.tree.leaves(grads))
    good = guard.usable(parts.total, norm)
    model, opt_state = guard.choose(good, (model, opt_state), (state.model, state.opt_state))
    rate: Any = optimizer.schedule(config, sequence_length)(guard.updates_done(state.opt_state))
    step_metrics = metrics.of_step(parts, grad_norm=norm, lr=rate)
    return TrainState(model=model, opt_state=opt_state, step=state.step + 1), step_metrics


def weights_at(config: TrainConfig, step: Int[Array, ""], sequence_length: int) -> TrainConfig:
    """`config` with the weights of the loss that hold at `step`, after the changes of its schedule.

    Each change begins with the first step whose tokens lie behind its place in the budget. Without changes `config`
    itself, and the program holds its numbers.
    """
    ramp, weights = config.ramp(sequence_length), {}
    for change in config.schedule.changes:
        before = weights.get(change.name, getattr(config.loss, change.name))
        weights[change.name] = jnp.where(step >= ramp.step_at(change.after), jnp.float32(change.value), before)
    return replace(config, loss=replace(config.loss, **weights)) if weights else config


def _same(tree: Any) -> Any:
    return tree


def _first() -> int:
    return 0


def dropout_key(config: TrainConfig, step: Int[Array, ""], shard: Int[Array, ""] | int) -> PRNGKeyArray | None:
    """The key of one step's dropouts on one device: a function of seed, step and shard, so that it needs no state.

    `None` if nothing is dropped, and the program holds no random numbers.
    """
    if not (config.dropout.residual or config.dropout.attention):
        return None
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), step), shard)


def train_step(
    state: TrainState,
    windows: Int[Array, "batch seq_plus_one"],
    *,
    config: TrainConfig,
    sequence_length: int,
    execution: Execution = LOCAL,
    sum_data: Callable[[Any], Any] = _same,
    mean_data: Callable[[Any], Any] = _same,
    shard: Callable[[], Int[Array, ""] | int] = _first,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on `windows`; pure, to be jitted by the caller with `state` donated.

    Args:
        state: where training stands.
        windows: sequences of `sequence_length` + 1 tokens, this device's share of the batch.
        config: how to train; of the batch sizes only the place in the budget is read, the batch is what `windows` holds.
        sequence_length: targets of one window, which turns the token budget into steps.
        execution: how the model's mathematics is carried out.
        sum_data: sum of integer loads over the data-parallel devices (`jax.lax.psum`).
        mean_data: mean of gradients and losses over the data-parallel devices (`jax.lax.pmean`).
        shard: number of this device among them.
    """
    options: Any = {"config": config, "sequence_length": sequence_length, "execution": execution}
    state, step_metrics = observed_step(state, windows, **options, sum_data=sum_data, mean_data=mean_data, shard=shard)
    del step_metrics["grads"]
    return state, step_metrics


def observed_step(
    state: TrainState,
    windows: Int[Array, "batch seq_plus_one"],
    *,
    config: TrainConfig,
    sequence_length: int,
    execution: Execution = LOCAL,
    sum_data: Callable[[Any], Any] = _same,
    mean_data: Callable[[Any], Any] = _same,
    shard: Callable[[], Int[Array, ""] | int] = _first,
) -> tuple[TrainState, dict[str, Any]]:
    """`train_step` that lets the mean gradient of the whole batch out too, as `grads` among the metrics."""
    key = dropout_key(config, state.step, shard())
    config = weights_at(config, state.step, sequence_length)
    grads, parts = gradients(state.model, windows, config=config, key=key, execution=execution)
    loads = sum_data(parts.loads)
    means = mean_data((grads, parts.total, parts.main, parts.mtp, parts.balance))
    grads, total, main, mtp, balance = means
    parts = losses.Losses(total=total, main=main, mtp=mtp, balance=balance, loads=loads)
    state, step_metrics = apply(state, grads, parts, config=config, sequence_length=sequence_length)
    return state, {**step_metrics, "grads": grads}
