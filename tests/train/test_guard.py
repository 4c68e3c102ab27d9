"""What a step does when its numbers break."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab.config import StabilityConfig
from dsv3lab.train import guard, losses, optimizer, step
from tests import builders
from tests.train.helpers import random_state

LENGTH = builders.SEQUENCE_LENGTH
MODEL = builders.model_config(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0)
TRAIN = builders.train_config()


def bits(tree: object) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.limit(60)  # compiles the update of every leaf
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_without_a_finite_gradient_or_objective_is_skipped_bitwise(bad: float) -> None:
    state = random_state(MODEL, TRAIN, sequence_length=LENGTH)
    grads = jax.tree.map(jnp.ones_like, step.split(state.model)[0])
    one = jnp.float32(1.0)
    parts = losses.Losses(total=one, main=one, mtp=one, balance=one, loads=jnp.asarray([[9, 1, 0, 2]]))

    @jax.jit
    def apply(state: step.TrainState, grads: object, parts: losses.Losses) -> tuple[step.TrainState, dict]:
        return step.apply(state, grads, parts, config=TRAIN, sequence_length=LENGTH)

    state, _ = apply(state, grads, parts)  # moments that are not zero
    spoiled = eqx.tree_at(
        lambda g: g.stacks[0].unit[0].attention.out, grads, replace_fn=lambda a: a.at[0, 0, 0].set(bad)
    )
    for case, (some_grads, some_parts) in {
        "gradient": (spoiled, parts),
        "objective": (grads, replace(parts, total=jnp.float32(bad))),
    }.items():
        after, metrics = apply(state, some_grads, some_parts)
        assert bits((after.model, after.opt_state)) == bits((state.model, state.opt_state)), case
        assert int(after.step) == int(state.step) + 1  # the next batch is another one
        later, then = apply(after, grads, parts)
        rate = optimizer.schedule(TRAIN, LENGTH)
        assert float(metrics["lr"]) == float(then["lr"]) == float(rate(1))  # the rate is that of the updates made
        assert bits(later.model) != bits(after.model) and int(guard.updates_done(later.opt_state)) == 2
    good, _ = apply(state, grads, parts)
    assert all(old != new for old, new in zip(bits(state.model), bits(good.model), strict=True))


def test_a_fault_is_made_in_its_step_only() -> None:
    tree = {"a": jnp.ones(3), "b": jnp.ones((2, 2), jnp.bfloat16)}
    for done, hit in ((3, False), (4, True), (5, False)):
        found = guard.nan_at(jnp.int32(done), (5, 99))(tree)
        assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, tree)
        assert all(bool(jnp.isnan(leaf).all()) == hit for leaf in jax.tree.leaves(found))
        assert hit or bits(found) == bits(tree)
    assert guard.nan_at(jnp.int32(4), ())(tree) is tree


def health(**changes: int) -> guard.Health:
    return guard.Health(StabilityConfig(**{"skipped_in_a_row": 2, "spike_factor": 1.5, "spike_window": 3, **changes}))


def seen(health: guard.Health, loss: float, *, total: float = 1.0) -> str:
    return health.step({"loss": loss, "mtp_loss": 1.0, "balance_loss": 1.0, "total": total, "grad_norm": 1.0}, 7)


def test_a_spike_lies_above_the_median_of_the_reported_losses() -> None:
    found = health()
    assert not seen(found, 99.0) and found.spikes == 0  # nothing was reported yet
    for loss in (9.0, 4.0, 5.0, 4.4, np.nan):
        found.reported({"train/loss": loss})
    found.reported({"validation/loss": 1000.0})
    seen(found, 6.6)  # the median of the last three is 4.4
    assert found.spikes == 0
    seen(found, 6.7)
    seen(found, np.nan)
    assert found.metrics() == {guard.NONFINITE: 0.0, guard.SPIKES: 1.0}


def test_only_steps_in_a_row_end_a_run() -> None:
    found = health()
    for total in (np.nan, 1.0, np.inf):
        assert bool(seen(found, 1.0, total=total)) == (total != 1.0)
        found.check(7)
    seen(found, 1.0, total=np.nan)
    with pytest.raises(guard.Diverged, match="step 7: 2 steps in a row"):
        found.check(7)
    assert found.metrics()[guard.NONFINITE] == 3
