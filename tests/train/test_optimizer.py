"""The learning-rate shape at its corners, and what weight decay touches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dsv3lab as dl
from dsv3lab.train import optimizer
from dsv3lab.train.step import TrainState, split
from tests import builders, tolerances

LENGTH = 10
SHAPE = builders.train_config().schedule  # peak 1e-2, final 1e-3, tail 1e-4; corners at 0.2, 0.5, 0.8, 0.9


@pytest.mark.parametrize(
    ("update", "rate"),
    [
        (1, 1e-2 / 20),  # the first of 100 updates, in a warm-up of 20
        (10, 0.5e-2),
        (20, 1e-2),
        (21, 1e-2),
        (50, 1e-2),
        (65, (1e-2 + 1e-3) / 2),  # half way down the cosine
        (80, 1e-3),
        (90, 1e-3),
        (91, 1e-4),
        (100, 1e-4),
    ],
)
def test_the_schedule_at_its_corners(update: int, rate: float) -> None:
    config = builders.train_config(tokens=100 * 4 * LENGTH)
    assert config.steps(LENGTH) == 100
    np.testing.assert_allclose(optimizer.schedule(config, LENGTH)(update - 1), rate, rtol=tolerances.SCHEDULE_RTOL)


def test_another_peak_keeps_the_shape() -> None:
    lower = SHAPE.with_peak(2e-3)
    assert (lower.peak_lr, lower.final_lr, lower.tail_lr) == pytest.approx((2e-3, 2e-4, 2e-5))
    assert (lower.warmup, lower.constant, lower.tail) == (SHAPE.warmup, SHAPE.constant, SHAPE.tail)
    none = replace(SHAPE, peak_lr=0.0).with_peak(2e-3)
    assert (none.peak_lr, none.final_lr, none.tail_lr) == (2e-3, 0.0, 0.0)


def test_decay_acts_on_matrices_only() -> None:
    params, _ = split(dl.abstract(dl.config("nano")))
    mask = optimizer.decay_mask(params)
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator=".").split(".")[-1]
        for path, yes in jax.tree_util.tree_leaves_with_path(mask)
        if yes
    }
    spared = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, yes in jax.tree_util.tree_leaves_with_path(mask)
        if not yes
    }
    projections = {"query_down", "query_up", "latent_down", "latent_up", "out", "project", "head"}
    assert decayed == projections | {"gate_up", "down", "weight"}  # `weight`: the routers
    assert "embedding" in spared
    assert all(name.endswith(("norm.weight", "embedding")) for name in spared)
    norms = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.shape[-1:] != () and "norm" in jax.tree_util.keystr(path)
    }
    assert norms and norms <= spared


@pytest.mark.limit(30)  # compiles an update of every leaf
def test_without_gradient_only_decayed_leaves_move_and_only_by_the_decay() -> None:
    model = builders.model_config(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0)
    config = builders.train_config()
    shapes = TrainState.abstract(model, config, sequence_length=LENGTH)
    params, _ = split(jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes.model))

    @jax.jit
    def update(params):  # noqa: ANN001, ANN202
        transformation = optimizer.make(config, LENGTH)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.apply_updates(params, transformation.update(zeros, transformation.init(params), params)[0])

    rate = optimizer.schedule(config, LENGTH)(0)
    for before, after, decays in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(update(params)),
        jax.tree.leaves(optimizer.decay_mask(params)),
        strict=True,
    ):
        expected = before * (1 - rate * config.optimizer.weight_decay) if decays else before
        np.testing.assert_allclose(after, expected, rtol=tolerances.SCHEDULE_RTOL)
        assert decays or np.array_equal(before, after)
