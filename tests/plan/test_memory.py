"""Bytes of the training state and of what a step returns: the closed form against the abstract arrays."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from dsv3lab import plan
from dsv3lab.config import CONF, config
from dsv3lab.train.step import TrainState, train_step
from tests import builders

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def _bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_state_of_every_configuration(name, moments):
    model, train = config(name), builders.train_config()
    train = replace(train, optimizer=replace(train.optimizer, moments=moments))
    state = TrainState.abstract(model, train, sequence_length=12)
    planned = plan.state_bytes(model, train)
    assert sum(planned.values()) == _bytes(state)
    assert planned["moments"] == _bytes(state.opt_state) - 8
    assert planned["weights"] + planned["router biases"] == _bytes(state.model)


@pytest.mark.parametrize("changes", [{}, {"num_nextn_predict_layers": 0}, {"num_hidden_layers": 5}])
def test_what_a_step_takes_and_returns(changes):
    model, train = builders.model_config(**changes), builders.train_config()
    state = TrainState.abstract(model, train, sequence_length=12)
    windows = jax.ShapeDtypeStruct((4, 13), jnp.int32)
    assert plan.batch_bytes(4, sequence_length=12) == _bytes(windows)
    after, metrics = jax.eval_shape(lambda s, w: train_step(s, w, config=train, sequence_length=12), state, windows)
    assert _bytes(after) == _bytes(state) and plan.metrics_bytes(model) == _bytes(metrics)
