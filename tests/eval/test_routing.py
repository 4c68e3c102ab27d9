"""Which tokens change their experts: sets, margins, and what no near tie explains."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab import parallel
from dsv3lab.eval import Choices, choices, choose, margins, unexplained
from dsv3lab.model.routing import select
from tests.builders import model_config, random_model

CONFIG = model_config(n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=2)


def selected(biased: np.ndarray, config: Any) -> np.ndarray:
    options = {"top": config.num_experts_per_tok, "groups": config.n_group, "top_groups": config.topk_group}
    return np.sort(np.asarray(select(jnp.asarray(biased, jnp.float32), None, **options)), axis=-1)


@pytest.mark.parametrize("config", [CONFIG, model_config(n_group=1, topk_group=1)], ids=["groups", "no groups"])
def test_no_move_within_the_margin_changes_a_set_and_a_larger_one_does(config: Any) -> None:
    rng = np.random.default_rng(0)
    biased = rng.uniform(size=(500, config.n_routed_experts))
    margin, before = margins(biased[None], config)[0], selected(biased, config)
    assert (margin > 0).all()
    changed = np.zeros(len(biased), bool)
    for _ in range(300):  # every score at a corner of the cube that it may move in
        signs = rng.choice([-1.0, 1.0], size=biased.shape)
        assert (selected(biased + 0.99 * margin[:, None] * signs, config) == before).all()
        changed |= (selected(biased + 1.01 * margin[:, None] * signs, config) != before).any(axis=-1)
    assert changed.mean() > 0.9, "the margin is no wider than it must be"


def test_only_what_no_near_tie_explains_is_counted() -> None:
    config = model_config(n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=1)
    biased = np.array([[[0.9, 0.1, 0.2, 0.3], [0.50, 0.49, 0.1, 0.1]]], np.float32)
    one = Choices(ids=np.array([[[0], [0]]]), biased=biased)
    moved = biased + np.array([0.0, 0.02, 0.0, 0.0], np.float32)
    near_tie = Choices(ids=np.array([[[0], [1]]]), biased=moved)
    assert one.same_set(near_tie).tolist() == [[True, False]]
    assert one.moved(near_tie) == pytest.approx(np.full((1, 2), 0.02), abs=1e-6)
    assert unexplained(one, near_tie, config) == 0
    assert unexplained(one, Choices(ids=np.array([[[3], [1]]]), biased=moved), config) == 1


@pytest.mark.limit(90)  # compiles the forward pass for one device and for two
def test_devices_put_their_tokens_in_their_places() -> None:
    parallel.simulate_devices(2)
    model = random_model(model_config())
    windows = jnp.asarray(np.random.default_rng(0).integers(0, 64, (4, 9)), jnp.int32)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    one = choices(model, jax.jit(choose)(model, windows)[1])
    two = choices(
        model, parallel.data_parallel(lambda m, w, **hooks: choose(m, w, ways=2, **hooks), mesh)(model, windows)[1]
    )
    assert one.ids.shape == (3, 32, 2)  # two MoE layers and the MTP module
    assert one.same_set(two).all()
    np.testing.assert_allclose(one.biased, two.biased, atol=1e-5)
    assert (selected(one.biased[0], model_config()) == one.ids[0]).all()
