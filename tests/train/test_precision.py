"""Number formats and dropout in training: what is rounded, what is not, and what a step still is."""

import dataclasses
import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dsv3lab as dl
from dsv3lab import program
from dsv3lab.config import ConfigError, DropoutConfig, ParallelConfig, PrecisionConfig
from dsv3lab.model.linear import KEPT, RECIPES
from dsv3lab.parallel import make_execution
from dsv3lab.train import TrainState, gradients, optimizer, train_step
from dsv3lab.train.step import dropout_key
from tests import builders, tolerances

CONFIG = builders.model_config(num_hidden_layers=2)
WINDOWS = builders.FakeDataset().batch_at(0, batch_size=4)
PLAN = ParallelConfig(data=1, simulated=True)
PRECISIONS = {
    "bf16": PrecisionConfig(products="bfloat16", activations="bfloat16"),
    "fp8": PrecisionConfig(products="fp8", activations="bfloat16"),
}


def _gradients(**options):
    train = builders.train_config()
    execution = make_execution(PLAN, **options)
    return eqx.filter_jit(lambda m: gradients(m, jnp.asarray(WINDOWS), config=train, execution=execution))(
        builders.random_model(CONFIG)
    )


QUANTISED = {
    *(f"attention.{name}" for name in ("query_down", "query_up", "latent_down", "latent_up", "out")),
    *(f"{room}.{name}" for room in ("ffn", "experts") for name in ("gate_up", "down")),
}


def _casts(function: Any, *arguments: Any) -> int:
    """Casts to E4M3 in the traced program."""
    traced = [site.eqn for site in program.sites(function, *arguments)]
    casts = [eqn for eqn in traced if eqn.primitive.name == "convert_element_type"]
    return sum(eqn.params["new_dtype"] == jnp.float8_e4m3fn for eqn in casts)


def test_fp8_is_in_the_products_that_the_report_names_and_nowhere_else() -> None:
    """V3 report 3.3.1: all linear layers but embedding, head, router, norms and attention's own products; and eh_proj."""
    seen: list[tuple[str, int]] = []

    def noting(multiply: Any) -> Any:
        def run(*arguments: Any, place: str) -> Any:
            seen.append((place, _casts(ft.partial(multiply, place=place), *arguments)))
            return multiply(*arguments, place=place)

        return run

    fp8 = make_execution(PLAN, precision=PRECISIONS["fp8"], scan=False)
    noted = dataclasses.replace(fp8, matmul=noting(fp8.matmul), grouped_matmul=noting(fp8.grouped_matmul))

    def logits(model: dl.DeepSeek, tokens: Any) -> Any:
        output = model.forward(tokens, mtp=True, execution=noted)
        return [model.unembed(hidden, execution=noted) for hidden in (output.hidden, *output.mtp)]

    whole = _casts(logits, dl.abstract(CONFIG), jax.ShapeDtypeStruct((2, 8), jnp.int32))
    assert {place for place, casts in seen if casts} == QUANTISED > RECIPES.keys()
    assert {place for place, casts in seen if not casts} == KEPT == {"mtp.project", "head"}
    assert whole == sum(casts for _, casts in seen)


@pytest.mark.limit(90)  # compiles three whole gradients
def test_low_precision_gradients_are_float32_and_near_those_of_float32() -> None:
    exact, parts = _gradients()
    for name, precision in PRECISIONS.items():
        found, losses = _gradients(precision=precision)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
        np.testing.assert_allclose(losses.main, parts.main, rtol=tolerances.LOW_PRECISION_LOSS_RTOL[name])
        difference = optax.tree.norm(jax.tree.leaves(jax.tree.map(jnp.subtract, found, exact)))
        size = optax.tree.norm(jax.tree.leaves(exact))
        assert 1e-4 < float(difference / size) < tolerances.LOW_PRECISION_GRADIENT_RTOL[name], name


def test_moments_in_bfloat16_differ_from_float32_by_their_rounding() -> None:
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)}
    adam = optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8)
    states, updates = {}, {}
    for moments, transformation in {"float32": adam, "bfloat16": optimizer.kept_in_bfloat16(adam)}.items():
        state = transformation.init(params)
        for n in (1, 2, 3):
            update, state = transformation.update(jax.tree.map(lambda p, n=n: jnp.sin(p * n), params), state, params)
        states[moments], updates[moments] = state, update["w"]
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(states["bfloat16"]) if leaf.shape == (8, 8)}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    assert updates["bfloat16"].dtype == jnp.float32
    error = np.abs(updates["bfloat16"] - updates["float32"]).max() / np.abs(updates["float32"]).max()
    assert 0 < error < tolerances.BFLOAT16_MOMENTS_RTOL


def test_products_and_activations_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="activations: float32 does not go with products in bfloat16"):
        PrecisionConfig(products="bfloat16", activations="float32")


def test_the_key_of_dropout_is_a_function_of_seed_step_and_device() -> None:
    train = builders.train_config()
    assert dropout_key(train, jnp.int32(0), 0) is None
    train = dataclasses.replace(train, dropout=DropoutConfig(residual=0.1, attention=0.0))
    keys = [
        tuple(jax.random.key_data(dropout_key(dataclasses.replace(train, seed=seed), jnp.int32(step), shard)).tolist())
        for seed, step, shard in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0))
    ]
    assert len(set(keys)) == 4 and keys[0] == keys[-1]


@pytest.mark.limit(60)  # compiles a whole step
def test_a_step_in_bfloat16_with_dropout_and_recomputation_learns_and_repeats() -> None:
    base = builders.train_config()
    train = dataclasses.replace(
        base,
        dropout=DropoutConfig(residual=0.1, attention=0.1),
        optimizer=dataclasses.replace(base.optimizer, moments="bfloat16"),
    )
    execution = make_execution(PLAN, precision=PRECISIONS["bf16"], dropout=train.dropout, remat="report")
    step = eqx.filter_jit(lambda s, w: train_step(s, w, config=train, sequence_length=12, execution=execution))
    histories = []
    for _ in range(2):
        state, losses = TrainState.of(builders.random_model(CONFIG), train, sequence_length=12), []
        for _ in range(6):
            state, metrics = step(state, jnp.asarray(WINDOWS))
            losses.append(float(metrics["loss"]))
        histories.append(losses)
    assert histories[0] == histories[1]
    assert histories[0][-1] < histories[0][0]
