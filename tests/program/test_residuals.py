"""Residuals of small functions counted by hand, against JAX's own list, and of the remat policies in closed form."""

import contextlib
import io
import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import print_saved_residuals

import dsv3lab as dl
from dsv3lab import plan, program
from dsv3lab.config import ParallelConfig, PrecisionConfig
from dsv3lab.parallel import make_execution
from dsv3lab.train import losses
from tests import builders

X, W = jax.ShapeDtypeStruct((3, 4), jnp.float32), jax.ShapeDtypeStruct((4, 5), jnp.float32)
ONE = ParallelConfig(data=1, simulated=True)


def product(both):
    x, w = both
    return jnp.sum(jnp.sin(x @ w))


def test_a_product_keeps_its_factors_and_the_cosine():
    found = program.residuals(product, (X, W))
    assert found.new_bytes == 3 * 5 * 4 and found.argument_bytes == (3 * 4 + 4 * 5) * 4
    assert found.table() == [("float32[3, 5]", 1, 60)]
    assert found.table(argument=True) == [("float32[4, 5]", 1, 80), ("float32[3, 4]", 1, 48)]


def test_jit_changes_nothing_and_what_is_not_differentiated_is_not_needed():
    assert program.residuals(jax.jit(product), (X, W)) == program.residuals(product, (X, W))
    given = program.residuals(lambda w, x: product((x, w)), W, X)  # the gradient of x needs w, and nobody asks for it
    assert given.argument_bytes == 3 * 4 * 4 and given.new_bytes == 60


def test_an_array_that_is_kept_twice_is_counted_once():
    def twice(x):
        root = jnp.exp(x)  # its own derivative, and a factor of the product
        return jnp.sum(root * root)

    assert program.residuals(twice, X).new_bytes == 3 * 4 * 4


def test_a_checkpoint_keeps_its_input_only():
    found = program.residuals(jax.checkpoint(product), (X, W))
    assert found.new_bytes == 0 and found.argument_bytes == (3 * 4 + 4 * 5) * 4


def repeated(w, x):
    return jnp.sum(jax.lax.scan(jax.checkpoint(lambda c, _: (jnp.sin(c @ w @ w.T), None)), x, None, length=6)[0])


def test_a_scan_keeps_a_stack_of_its_carries():
    assert program.residuals(repeated, W, X).table() == [("float32[6, 3, 4]", 1, 6 * 3 * 4 * 4)]


@pytest.mark.parametrize("function", [lambda w, x: product((x, w)), repeated])
def test_it_is_the_list_that_jax_prints(function):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_saved_residuals(function, W, X)
    lines = [
        line
        for line in out.getvalue().splitlines()
        if "from the argument" not in line and "from a constant" not in line
    ]
    shapes = [
        [int(n) for n in size.split(",") if n] for size in re.findall(r"^\w+\[([\d,]*)\]", "\n".join(lines), re.M)
    ]
    assert (
        sum(4 * math.prod(shape) for shape in shapes)
        == program.residuals(lambda both: function(*both), (W, X)).new_bytes
    )


FLOAT32 = PrecisionConfig(products="float32", activations="float32")


def saved(config, policy, *, precision=FLOAT32, sequences=3, length=12, chunk=16):
    execution = make_execution(ONE, remat=policy, scan=True, precision=precision)

    def objective(trained, rest, windows):
        model, loss = eqx.combine(trained, rest), builders.loss_config(vocab_chunk=chunk)
        return losses.compute(model, windows, config=loss, execution=execution)[0]

    trained, rest = eqx.partition(dl.abstract(config), dl.trainable(dl.abstract(config)))
    windows = jax.ShapeDtypeStruct((sequences, length + 1), jnp.int32)
    return program.residuals(objective, trained, rest, windows)


CHANGES = [
    {},
    {"num_nextn_predict_layers": 0},
    {"num_nextn_predict_layers": 2},
    {"q_lora_rank": None, "n_shared_experts": 0},
    {"tie_word_embeddings": True},
    {"num_hidden_layers": 5, "first_k_dense_replace": 2},
    {"num_hidden_layers": 6, "first_k_dense_replace": 0, "dense_layer_interval": 3},
    {"num_hidden_layers": 7, "first_k_dense_replace": 0, "dense_layer_interval": 3, "n_shared_experts": 0},
]


@pytest.mark.limit(60)  # traces four gradients
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_what_the_policies_keep_is_the_closed_form(changes):
    config = builders.model_config(**changes)
    found = {policy: saved(config, policy).new_bytes for policy in ("none", "products", "report", "full")}
    assert found["none"] > found["products"] > found["report"] > found["full"]
    for policy in ("products", "report", "full"):
        expected = plan.residual_bytes(config, remat=policy, sequences=3, sequence_length=12)
        assert found[policy] == sum(expected.values()), policy


@pytest.mark.limit(60)  # traces three gradients
@pytest.mark.parametrize("products", ["bfloat16", "fp8"])
@pytest.mark.parametrize("changes", [CHANGES[0], CHANGES[3], CHANGES[-1]], ids=str)
def test_low_precision_halves_the_activations_and_leaves_the_rest(changes, products):
    config = builders.model_config(**changes)
    precision = PrecisionConfig(products=products, activations="bfloat16")
    for policy in ("products", "report", "full"):
        found = saved(config, policy, precision=precision).new_bytes
        sizes = {"remat": policy, "sequences": 3, "sequence_length": 12}
        assert found == sum(plan.residual_bytes(config, **sizes, activations="bfloat16").values()), policy
        assert found < sum(plan.residual_bytes(config, **sizes).values())


def test_full_keeps_the_inputs_of_its_units():
    config = builders.model_config(num_nextn_predict_layers=0)
    one_more = builders.model_config(num_nextn_predict_layers=0, num_hidden_layers=config.num_hidden_layers + 1)
    more = saved(one_more, "full").new_bytes - saved(config, "full").new_bytes
    assert more == 3 * 12 * config.hidden_size * 4
