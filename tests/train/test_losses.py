"""The objective against the paper's equations, and which token moves which term."""

import functools as ft
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dsv3lab.config import ParallelConfig
from dsv3lab.model import Auxiliary, DeepSeek, Output, abstract
from dsv3lab.parallel import make_mesh
from dsv3lab.train import losses
from tests import builders, tolerances
from tests.train.helpers import random_like

CONFIG = builders.loss_config(bias_update_speed=0.0, vocab_chunk=5)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def probability(hidden: np.ndarray, head: np.ndarray) -> np.ndarray:
    """OutHead(h), Eq. 23, in float64."""
    logits = hidden.astype(np.float64) @ head
    exponential = np.exp(logits - logits.max())
    return exponential / exponential.sum()


def test_losses_follow_equations_21_to_25() -> None:
    """Plain loops with the paper's indices, which start at 1: tokens t_1..t_{T+1}, hidden states h_1..h_T."""
    batch, length, width, vocab, depths = 2, 6, 8, 11, 2
    head = normal(0, width, vocab)
    hidden = normal(1, depths + 1, batch, length, width)
    windows = np.random.default_rng(2).integers(vocab, size=(batch, length + 1)).astype(np.int32)
    by_depth = []
    for k in range(depths + 1):
        sequences = []
        for row in range(batch):
            t = dict(enumerate(windows[row], start=1))
            h = dict(enumerate(hidden[k, row], start=1))
            total = 0.0
            for i in range(2 + k, length + 2):  # Eq. 24: i = 2 + k .. T + 1
                total += math.log(probability(h[i - k - 1], head)[t[i]])  # P_i^k comes of h_{i-k-1}^k
            sequences.append(-total / length)  # divided by T although there are T - k terms
        by_depth.append(np.mean(sequences))
    main, *mtp = by_depth

    output = Output(
        hidden=jnp.asarray(hidden[0]),
        mtp=tuple(jnp.asarray(h) for h in hidden[1:]),
        loads=jnp.zeros((1, 4), jnp.int32),
        balance=jnp.float32(7.0),
        auxiliary=Auxiliary(*(jnp.float32(value) for value in (3.0, 5.0, 11.0, 13.0))),
        captured={},
    )
    total, parts = losses.of_output(output, jnp.asarray(head), jnp.asarray(windows), config=CONFIG)
    np.testing.assert_allclose(parts.main, main, rtol=tolerances.LOSS_RTOL)
    np.testing.assert_allclose(parts.mtp, np.mean(mtp), rtol=tolerances.LOSS_RTOL)
    expected = main + 0.3 / depths * sum(mtp) + 0.01 * 7.0  # Eq. 25: lambda / D times the sum
    np.testing.assert_allclose(total, expected, rtol=tolerances.LOSS_RTOL)
    assert parts.total == total
    others = builders.loss_config(switch_alpha=0.1, expert_alpha=0.2, device_alpha=0.3, communication_alpha=0.4)
    total, _ = losses.of_output(output, jnp.asarray(head), jnp.asarray(windows), config=others)
    expected += 0.1 * 3.0 + 0.2 * 5.0 + 0.3 * 11.0 + 0.4 * 13.0
    np.testing.assert_allclose(total, expected, rtol=tolerances.LOSS_RTOL)


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_the_chunk_changes_neither_loss_nor_gradient(chunk: int) -> None:
    tokens, width, vocab = 12, 8, 16
    hidden, head = jnp.asarray(normal(0, tokens, width)), jnp.asarray(normal(1, width, vocab))
    targets = jnp.asarray(np.random.default_rng(2).integers(vocab, size=tokens), jnp.int32)
    weights = jnp.asarray(np.random.default_rng(3).uniform(size=tokens), jnp.float32).at[3].set(0.0)

    def whole(hidden: jax.Array, head: jax.Array) -> jax.Array:
        logits = jax.nn.log_softmax(hidden @ head)
        return -jnp.sum(weights * logits[jnp.arange(tokens), targets])

    def chunked(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return 3.0 * losses.vocabulary_loss(hidden, head, targets, weights, chunk=chunk)

    expected = jax.value_and_grad(whole, argnums=(0, 1))(hidden, head)
    actual = jax.value_and_grad(chunked, argnums=(0, 1))(hidden, head)
    for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(got, 3.0 * want, rtol=tolerances.LOSS_RTOL, atol=tolerances.LOSS_ATOL)
    np.testing.assert_allclose(chunked(hidden, head), actual[0], rtol=tolerances.LOSS_RTOL)  # without differentiation


def test_loss_and_gradient_are_right_on_split_tokens_and_shared_head() -> None:
    devices, tokens, width, vocab = 4, 16, 8, 16
    hidden, head = jnp.asarray(normal(0, tokens, width)), jnp.asarray(normal(1, width, vocab))
    targets = jnp.arange(tokens, dtype=jnp.int32)
    loss = ft.partial(losses.vocabulary_loss, weights=jnp.full(tokens // devices, 1.0), chunk=3)
    mesh = make_mesh(ParallelConfig(data=devices, simulated=True))

    def split(hidden: jax.Array, head: jax.Array) -> jax.Array:
        def local(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
            return jax.lax.psum(loss(hidden, head, targets), "data")

        specs = (P("data"), P(), P("data"))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())(hidden, head, targets)

    def whole(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return losses.vocabulary_loss(hidden, head, targets, jnp.full(tokens, 1.0), chunk=3)

    expected = jax.value_and_grad(whole, argnums=(0, 1))(hidden, head)
    actual = jax.jit(jax.value_and_grad(split, argnums=(0, 1)))(hidden, head)
    for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerances.LOSS_RTOL, atol=tolerances.LOSS_ATOL)


LENGTH, DEPTHS = 8, 2


@pytest.fixture(scope="module")
def model() -> DeepSeek:
    return random_like(abstract(builders.model_config(num_nextn_predict_layers=DEPTHS)))


@jax.jit
def forward(model: DeepSeek, windows: jax.Array) -> tuple[jax.Array, losses.Losses]:
    return losses.terms(model, windows, chunk=64), losses.compute(model, windows, config=CONFIG)[1]


def perturbed_windows() -> np.ndarray:
    """Row 0 is a window; row 1 + j is the same window with another token at j."""
    window = np.random.default_rng(0).integers(64, size=LENGTH + 1).astype(np.int32)
    rows = np.tile(window, (LENGTH + 2, 1))
    for j in range(LENGTH + 1):
        rows[1 + j, j] = (rows[1 + j, j] + 17) % 64
    return rows


@pytest.mark.limit(60)  # compiles the model with two MTP depths
def test_influence_of_each_token_on_each_term(model: DeepSeek) -> None:
    """Term i of depth k knows the tokens up to i + k and is judged by token i + k + 1: causality and alignment."""
    terms, _ = forward(model, jnp.asarray(perturbed_windows()))
    terms = np.asarray(terms)
    moved = np.abs(terms[:, 1:] - terms[:, :1]) > tolerances.INFLUENCE_ATOL
    for depth in range(DEPTHS + 1):
        for j in range(LENGTH + 1):
            for i in range(LENGTH):
                exists = i + depth + 1 <= LENGTH
                assert moved[depth, j, i] == (exists and j <= i + depth + 1), (depth, j, i)
        assert np.all(terms[depth, :, LENGTH - depth :] == 0.0)
        assert np.all(terms[depth, :, : LENGTH - depth] > 0.0)


@pytest.mark.limit(60)  # compiles the model with two MTP depths
def test_a_uniform_router_costs_exactly_one_for_each_layer(model: DeepSeek) -> None:
    def routers(model: DeepSeek) -> list[jax.Array]:
        return [model.stacks[1].unit[0].ffn.router.weight] + [m.block.ffn.router.weight for m in model.mtp]

    uniform = eqx.tree_at(routers, model, [jnp.zeros_like(weight) for weight in routers(model)])
    _, parts = forward(uniform, jnp.asarray(perturbed_windows()))
    layers = 2 + DEPTHS
    assert parts.balance == layers
    np.testing.assert_allclose(
        parts.total - parts.main - CONFIG.mtp_weight * parts.mtp,
        CONFIG.balance_alpha * layers,
        atol=tolerances.LOSS_ATOL,
    )


@pytest.mark.limit(60)  # compiles the model with two MTP depths
def test_terms_add_up_to_the_losses(model: DeepSeek) -> None:
    terms, parts = forward(model, jnp.asarray(perturbed_windows()))
    sums = np.asarray(terms).sum(axis=2).mean(axis=1) / LENGTH
    np.testing.assert_allclose(parts.main, sums[0], rtol=tolerances.LOSS_RTOL)
    np.testing.assert_allclose(parts.mtp, sums[1:].mean(), rtol=tolerances.LOSS_RTOL)
