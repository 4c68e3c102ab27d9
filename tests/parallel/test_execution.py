"""What the settings of `make_execution` do to the traced program."""

import dataclasses

import jax
import jax.numpy as jnp

import dsv3lab as dl
from dsv3lab import parallel, program
from dsv3lab.config import ParallelConfig
from dsv3lab.model import COUNTABLE
from tests import builders

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
