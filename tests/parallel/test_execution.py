"""What the settings of `make_execution` do to the traced program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import dsv3lab as dl
from dsv3lab import parallel, program
from dsv3lab.config import ParallelConfig
from dsv3lab.model import COUNTABLE, grouped_matmul
from tests import builders
from tests.tolerances import GROUPED_ATOL

PLAN = ParallelConfig(data=8, simulated=True)
TOKENS = jax.ShapeDtypeStruct((2, 8), jnp.int32)


def _work(backward, **settings):
    execution = dataclasses.replace(
        parallel.make_execution(PLAN, **settings),
        grouped_matmul=COUNTABLE.grouped_matmul,
        attention=COUNTABLE.attention,
    )

    def loss(model, tokens):
        return jnp.sum(model.forward(tokens, mtp=True, execution=execution).hidden ** 2)

    fn = jax.value_and_grad(loss, allow_int=True) if backward else loss
    return program.flops(fn, dl.abstract(builders.model_config()), TOKENS)


def test_the_settings_are_equal_when_made_twice_so_that_nothing_compiles_twice():
    assert parallel.make_execution(PLAN, remat="full") == parallel.make_execution(PLAN, remat="full")
    assert hash(parallel.make_execution(PLAN)) == hash(parallel.make_execution(PLAN))


def test_scan_changes_no_work_and_full_remat_repeats_every_block_once():
    forward = _work(False)
    assert _work(False, scan=False) == forward
    extra = _work(True, remat="full") - _work(True)
    assert 0.5 * forward < extra <= forward


@pytest.mark.parametrize("implementation", ["ragged", "blocked"])
def test_a_grouped_product_of_two_formats_joins_the_gradients_of_the_devices(implementation):
    mesh = parallel.make_mesh(PLAN)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (mesh.size * 6, 4), jnp.bfloat16)
    dy = jax.random.normal(keys[1], (mesh.size * 6, 5), jnp.bfloat16)
    w, sizes = jax.random.normal(keys[2], (3, 4, 5)), jnp.asarray([1, 0, 5], jnp.int32)

    def gradient(w, x, dy):
        (dw,) = jax.vjp(lambda w: grouped_matmul(x, w, sizes, implementation=implementation), w)[1](dy)
        return dw

    rows = P(mesh.axis_names[0])
    together = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=(P(), rows, rows), out_specs=P()))(w, x, dy)
    alone = sum(gradient(w, x[i : i + 6], dy[i : i + 6]) for i in range(0, x.shape[0], 6))
    np.testing.assert_allclose(together, alone, atol=GROUPED_ATOL)
