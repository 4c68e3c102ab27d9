"""The data-parallel step on 8 simulated devices against one device: the whole recipe, bias update and MTP included."""

import functools as ft
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab import measure, parallel, program
from dsv3lab.config import ParallelConfig
from dsv3lab.parallel import data as collective
from dsv3lab.train import step as training
from tests import builders, tolerances

SEQUENCE, STEPS, DEVICES = builders.SEQUENCE_LENGTH, 5, 8
CONFIG = builders.model_config(num_hidden_layers=2, first_k_dense_replace=0)  # a dense layer adds only time to compile
TRAIN = builders.train_config(batch_size=16, micro_batch=1)


# Two whole training steps are compiled, for one device and for eight: seconds alone, a minute beside other work.
pytestmark = pytest.mark.limit(240)


class Trace(NamedTuple):
    """What one run leaves at each step."""

    states: list
    grads: list
    loads: list
    losses: list


def _step(state, windows, *, sum_data=lambda x: x, mean_data=lambda x: x, shard=lambda: 0):
    """`train_step`, which also lets the gradient out."""
    seen = {}

    def keep(tree):
        seen["mean"] = mean_data(tree)
        return seen["mean"]

    def count(loads):
        seen["loads"] = sum_data(loads)
        return seen["loads"]

    state, metrics = training.train_step(
        state, windows, config=TRAIN, sequence_length=SEQUENCE, sum_data=count, mean_data=keep, shard=shard
    )
    return state, {"metrics": metrics, "loads": seen["loads"], "grads": seen["mean"][0], "loss": seen["mean"][1]}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Half the time to compile; the steps here are small enough to run as slowly as they like."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def mesh(quick_compilation):
    return parallel.make_mesh(ParallelConfig(data=DEVICES, simulated=True))


@pytest.fixture(scope="module")
def start():
    return training.TrainState.of(builders.random_model(CONFIG), TRAIN, sequence_length=SEQUENCE)


@pytest.fixture(scope="module")
def batches():
    return np.random.default_rng(0).integers(0, 64, (STEPS, TRAIN.batch_size, SEQUENCE + 1), np.int32)


def _run(step, state, batches):
    trace = Trace([], [], [], [])
    for windows in batches:
        state, seen = jax.block_until_ready(step(state, jnp.asarray(windows)))
        trace.states.append(jax.device_get(state))
        trace.grads.append(jax.device_get(seen["grads"]))
        trace.loads.append(np.asarray(seen["loads"]))
        trace.losses.append(float(seen["loss"]))
    return trace


@pytest.fixture(scope="module")
def one(start, batches):
    return _run(eqx.filter_jit(_step), start, batches)


@pytest.fixture(scope="module")
def step_of_many(mesh):
    return parallel.data_parallel(_step, mesh)


@pytest.fixture(scope="module")
def many(start, batches, step_of_many):
    return _run(step_of_many, start, batches)


def test_loads_are_equal_as_integers_and_biases_bitwise(one, many):
    for a, b in zip(one.loads, many.loads, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sum() == 16 * 2 * (2 * SEQUENCE + SEQUENCE - 1)  # top 2 in two layers, and in MTP without its last
    for a, b in zip(one.states, many.states, strict=True):
        np.testing.assert_array_equal(a.model.bias(), b.model.bias())
    assert np.any(one.states[-1].model.bias() != 0)


def test_every_gradient_is_equal_relative_to_its_largest_element(start, one, batches, step_of_many):
    # Each from the state that one device reached: Adam divides by the size of a gradient, so along two separate runs
    # it turns rounding in small elements into steps of its own size.
    for state, a, windows in zip([start, *one.states], one.grads, batches, strict=False):
        left, right = jax.tree.leaves(a), jax.tree.leaves(_run(step_of_many, state, [windows]).grads[0])
        assert len(left) == len(right) > 15
        for x, y in zip(left, right, strict=True):
            largest = np.abs(x).max()
            assert largest > 0
            assert np.abs(x - y).max() <= tolerances.DATA_PARALLEL_GRADIENT_RTOL * largest


def test_losses_and_weights_stay_together(one, many):
    np.testing.assert_allclose(one.losses, many.losses, rtol=tolerances.DATA_PARALLEL_GRADIENT_RTOL)
    assert int(many.states[-1].step) == STEPS


def test_the_communication_is_one_all_reduce_of_each_gradient(start, batches, mesh):
    step = parallel.data_parallel(ft.partial(training.train_step, config=TRAIN, sequence_length=SEQUENCE), mesh)
    found = program.collectives(step, start, jnp.asarray(batches[0]))
    assert {(c.name, c.axes, c.count) for c in found} == {("all_reduce", ("data",), 1)}
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(training.split(start.model)[0]))
    loads = start.model.bias().size * 4
    losses = 4 * 4  # total, main, mtp, balance
    assert sum(c.bytes for c in found) == parameters + loads + losses
    assert sum(c.bytes for c in found if c.dtype == "int32") == loads


def test_a_step_that_forgets_to_join_is_refused(start, batches, mesh):
    def forgetful(state, windows, *, sum_data, mean_data, shard):
        return _step(state, windows, sum_data=sum_data)

    with pytest.raises(ValueError, match="varying|replicat|out_specs"):
        jax.eval_shape(parallel.data_parallel(forgetful, mesh), start, jnp.asarray(batches[0]))


def test_a_batch_that_does_not_split_is_refused(start, mesh):
    with pytest.raises(ValueError, match="12 sequences does not split into 8"):
        parallel.data_parallel(_step, mesh)(start, jnp.zeros((12, SEQUENCE + 1), jnp.int32))


def test_the_rate_of_an_all_reduce_is_what_one_device_puts_in_over_its_time(mesh, monkeypatch):
    def two_seconds(fns, *, repeats):
        assert repeats == 3
        summed = jax.block_until_ready(fns["all_reduce"]())
        assert summed.nbytes == 4000 and (np.asarray(summed) == DEVICES).all()
        (found,) = program.collectives(fns["all_reduce"])
        assert (found.name, found.axes, found.bytes, found.count) == ("all_reduce", ("data",), 4000, 1)
        return {"all_reduce": measure.Timing(median_s=2.0, p95_s=9.0, samples=(2.0,))}

    assert parallel.all_reduce_rate(mesh, 4002, repeats=2) > 0  # measured
    monkeypatch.setattr(collective, "median_time", two_seconds)
    assert parallel.all_reduce_rate(mesh, 4002, repeats=3) == 2000.0
