"""One step: micro-batches, loads, the bias update, and what the optimizer may not touch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab.model import LOCAL, abstract, reading
from dsv3lab.train import losses, step
from tests import builders, tolerances
from tests.train.helpers import random_like, random_state

LENGTH = builders.SEQUENCE_LENGTH


def test_bias_update_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    bias = rng.normal(size=(6, 4)).astype(np.float32)
    loads = rng.integers(0, 5, size=(6, 4)).astype(np.int32)
    loads[0] = 3  # all at the mean: sign(0) = 0
    loads[1] = [0, 0, 0, 1]  # a mean that is no integer
    loads[2] = [2**29, 2**29, 2**29, 2**29 - 1]  # 16 times the largest is beyond int32
    expected = reading.bias_update(bias, loads, speed=0.25)
    assert np.array_equal(step.bias_update(jnp.asarray(bias), jnp.asarray(loads), speed=0.25), expected)


def test_the_sign_is_taken_after_the_sum() -> None:
    """Two micro-batches that disagree: the sum of their signs would leave both experts where they are."""
    first, second = jnp.asarray([[9, 1]]), jnp.asarray([[4, 6]])
    whole = step.bias_update(jnp.zeros((1, 2)), first + second, speed=1.0)
    assert np.array_equal(whole, [[-1.0, 1.0]])


def test_loads_of_micro_batches_are_summed_before_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same two through `gradients`, with an objective that only reports loads."""
    first, second = jnp.asarray([[9, 1]]), jnp.asarray([[4, 6]])

    def compute(model, part, **options):  # noqa: ANN001, ANN003, ANN202
        zero = jnp.sum(model.head) * 0
        loads = jnp.where(part[0, 0] == 0, first, second)
        return zero, losses.Losses(total=zero, main=zero, mtp=zero, balance=zero, loads=loads)

    monkeypatch.setattr(losses, "compute", compute)
    model = builders.random_model(builders.model_config(num_hidden_layers=1, num_nextn_predict_layers=0))
    windows = jnp.arange(2)[:, None] * jnp.ones((1, LENGTH + 1), jnp.int32)
    _, parts = step.gradients(model, windows, config=builders.train_config(micro_batch=1))
    assert np.array_equal(parts.loads, first + second)


@pytest.mark.limit(60)  # compiles four gradients
def test_the_switch_loss_of_micro_batches_is_the_mean_of_theirs_and_not_that_of_the_batch() -> None:
    """f_i P_i is formed over what one device computes in one pass; next-token losses do not care."""
    model = builders.random_model(builders.model_config(num_hidden_layers=2, num_nextn_predict_layers=0))
    windows = jax.random.randint(jax.random.key(3), (2, LENGTH + 1), 0, builders.model_config().vocab_size)

    def totals(windows: jax.Array, micro_batch: int | None) -> tuple[float, float]:
        loss = builders.loss_config(switch_alpha=100.0)  # far above the noise of sums
        config = builders.train_config(micro_batch=micro_batch, loss=loss)
        parts = step.gradients(model, windows, config=config)[1]
        return float(parts.total), float(parts.main)

    (whole, main), (split, main_of_split) = totals(windows, None), totals(windows, 1)
    each = [totals(windows[i : i + 1], None)[0] for i in range(2)]
    np.testing.assert_allclose(split, np.mean(each), rtol=1e-5)
    np.testing.assert_allclose(main_of_split, main, rtol=1e-5)
    assert abs(whole - split) > 1e-3 * whole


@pytest.mark.limit(60)  # compiles the update of every leaf
def test_gamma_zero_leaves_the_bias_bitwise_through_the_optimizer() -> None:
    model = builders.model_config(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0)
    config = builders.train_config()
    state = random_state(model, config, sequence_length=LENGTH)
    grads = jax.tree.map(jnp.ones_like, step.split(state.model)[0])
    zero = jnp.float32(0.0)
    parts = losses.Losses(total=zero, main=zero, mtp=zero, balance=zero, loads=jnp.asarray([[9, 1, 0, 2]]))

    @jax.jit
    def apply(state: step.TrainState, gamma: jax.Array) -> step.TrainState:
        changed = replace(config, loss=replace(config.loss, bias_update_speed=gamma))
        return step.apply(state, grads, parts, config=changed, sequence_length=LENGTH)[0]

    before = np.asarray(state.model.bias())
    still, moved = apply(state, jnp.float32(0.0)), apply(state, jnp.float32(0.25))
    assert np.array_equal(np.asarray(still.model.bias()).view(np.uint32), before.view(np.uint32))
    assert np.array_equal(moved.model.bias(), reading.bias_update(before, np.asarray(parts.loads), speed=0.25))
    for old, new in zip(
        jax.tree.leaves(step.split(state.model)[0]), jax.tree.leaves(step.split(still.model)[0]), strict=True
    ):
        assert np.all(np.asarray(old) != np.asarray(new))  # everything else did move
    # Nothing of the optimizer's state has the shape of a bias: it never saw one.
    assert not any(leaf.shape == (1, 4) for leaf in jax.tree.leaves(state.opt_state))


@pytest.mark.limit(120)  # compiles the gradient of the whole model twice
def test_micro_batches_and_remat_equal_one_batch() -> None:
    """k micro-batches, recomputed in the backward pass, give the gradient, the losses and the loads of one batch."""
    model_config = builders.model_config(num_hidden_layers=2, first_k_dense_replace=0)
    whole = builders.train_config(micro_batch=None)
    model = random_like(step.TrainState.abstract(model_config, whole, sequence_length=LENGTH)).model
    windows = jnp.asarray(builders.FakeDataset().batch_at(0, batch_size=4))

    def run(micro_batch: int | None, execution):  # noqa: ANN001, ANN202
        config = replace(whole, micro_batch=micro_batch)
        return jax.jit(lambda m, w: step.gradients(m, w, config=config, execution=execution))(model, windows)

    grads, parts = run(None, LOCAL)
    accumulated, sums = run(2, replace(LOCAL, remat=jax.checkpoint))
    assert np.array_equal(parts.loads, sums.loads)
    top = model_config.num_experts_per_tok
    tokens = [4 * LENGTH, 4 * LENGTH, 4 * (LENGTH - 1)]  # the last position of MTP depth 1 has no token to look at
    assert np.array_equal(np.sum(parts.loads, axis=1), [top * count for count in tokens])
    for name in ("total", "main", "mtp", "balance"):
        np.testing.assert_allclose(getattr(sums, name), getattr(parts, name), rtol=tolerances.LOSS_RTOL)
    for one, many in zip(jax.tree.leaves(grads), jax.tree.leaves(accumulated), strict=True):
        np.testing.assert_allclose(many, one, atol=tolerances.GRADIENT_RTOL * float(jnp.max(jnp.abs(one))), rtol=0)
    bias = [step.bias_update(model.bias(), p.loads, speed=0.1) for p in (parts, sums)]
    assert np.array_equal(*bias)


def test_a_batch_that_does_not_split_is_refused_by_name() -> None:
    config = builders.train_config(micro_batch=2)
    model = abstract(builders.model_config())
    with pytest.raises(ValueError, match="micro_batch: 3 sequences on one device do not split into parts of 2"):
        jax.eval_shape(lambda m, w: step.gradients(m, w, config=config), model, jnp.zeros((3, LENGTH + 1), jnp.int32))
