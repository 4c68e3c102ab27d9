"""Routing against the NumPy reading, and properties that catch the famous mistakes without a reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dsv3lab.model import reading as reference
from dsv3lab.model.routing import balance_loss, expert_loads, gate_weights, select
from tests.tolerances import MODEL_ATOL, ROUTING_RTOL

TOP, GROUPS, TOP_GROUPS, EXPERTS, TOKENS = 3, 4, 2, 8, 5
SETTINGS = {"top": TOP, "groups": GROUPS, "top_groups": TOP_GROUPS}
choose = jax.jit(lambda scores, bias: select(scores, bias, **SETTINGS))
# Multiples of 1/64: sums are exact in float32, and ties are common.
sixtyfourths = st.integers(1, 63).map(lambda n: n / 64)
SCORES = arrays(np.float32, (TOKENS, EXPERTS), elements=sixtyfourths)
BIASES = arrays(np.float32, (EXPERTS,), elements=st.integers(-128, 128).map(lambda n: n / 64))


@given(scores=SCORES, bias=BIASES)
@settings(deadline=None, max_examples=60)
def test_selection_and_gates_are_those_of_the_numpy_reading(scores: np.ndarray, bias: np.ndarray) -> None:
    ids = np.asarray(choose(scores, bias))
    weights = np.asarray(gate_weights(jnp.asarray(scores), jnp.asarray(ids), scale=2.5))
    for t in range(TOKENS):
        expected = reference.select(scores[t].astype(float), bias.astype(float), **SETTINGS)
        assert ids[t].tolist() == expected
        np.testing.assert_allclose(
            weights[t], reference.gates(scores[t].astype(float), expected, scale=2.5), rtol=ROUTING_RTOL
        )


@given(scores=SCORES, bias=BIASES, constant=st.integers(-640, 640).map(lambda n: n / 64))
@settings(deadline=None, max_examples=60)
def test_a_constant_added_to_every_bias_changes_nothing(scores: np.ndarray, bias: np.ndarray, constant: float) -> None:
    np.testing.assert_array_equal(choose(scores, bias + np.float32(constant)), choose(scores, bias))


def test_excluded_groups_cannot_win_against_negative_biased_scores() -> None:
    scores = jnp.full((1, EXPERTS), 0.5)
    bias = jnp.array([-3.0, -3.0, -2.0, -2.0, -4.0, -4.0, -5.0, -5.0])
    assert sorted(np.asarray(choose(scores, bias))[0].tolist()) == [0, 2, 3]


def test_bias_chooses_but_never_weighs() -> None:
    scores = jnp.array([[0.9, 0.8, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1]])
    bias = jnp.zeros(EXPERTS).at[3].set(5.0)
    ids = select(scores, bias, top=2, groups=1, top_groups=1)
    assert ids.tolist() == [[3, 0]]
    gates = gate_weights(scores, ids, scale=1.0)
    np.testing.assert_allclose(gates[0], np.array([0.2, 0.9]) / 1.1, rtol=ROUTING_RTOL)


def test_loads_count_the_selection_of_valid_tokens() -> None:
    ids = jnp.array([[0, 3], [3, 1], [2, 3]])
    assert expert_loads(ids, None, num_experts=5).tolist() == [1, 1, 1, 3, 0]
    loads = expert_loads(ids, jnp.array([True, False, True]), num_experts=5)
    assert loads.tolist() == [1, 0, 1, 2, 0] and loads.dtype == jnp.int32


@pytest.mark.parametrize("score", [0.5, 0.125])
def test_a_uniform_router_gives_exactly_one(score: float) -> None:
    assert float(balance_loss(jnp.full((2, 16, EXPERTS), score), None, top=2)) == 1.0


def test_balance_is_that_of_the_numpy_reading_sequence_by_sequence() -> None:
    scores = np.random.default_rng(0).uniform(0.05, 0.95, (3, 7, EXPERTS)).astype(np.float32)
    expected = np.mean([reference.balance(s.astype(float), top=TOP) for s in scores])
    np.testing.assert_allclose(balance_loss(jnp.asarray(scores), None, top=TOP), expected, rtol=ROUTING_RTOL)
    valid = jnp.broadcast_to(jnp.arange(7) < 5, (3, 7))
    expected = np.mean([reference.balance(s[:5].astype(float), top=TOP) for s in scores])
    np.testing.assert_allclose(balance_loss(jnp.asarray(scores), valid, top=TOP), expected, rtol=ROUTING_RTOL)


def test_balance_pushes_down_the_score_of_an_expert_that_everyone_wants() -> None:
    scores = jnp.full((1, 6, EXPERTS), 0.3).at[..., 2].set(0.6)
    gradient = jax.grad(lambda s: balance_loss(s, None, top=1))(scores)
    assert bool(jnp.all(gradient[..., 2] > 0)) and bool(jnp.all(gradient[..., 3] < 0))


def test_no_gradient_reaches_selection_and_gates_sum_to_the_scale() -> None:
    scores = jnp.asarray(np.random.default_rng(1).uniform(0.1, 0.9, (4, EXPERTS)), jnp.float32)
    ids = choose(scores, jnp.zeros(EXPERTS))
    total, gradient = jax.value_and_grad(lambda s: jnp.sum(gate_weights(s, ids, scale=2.5)))(scores)
    np.testing.assert_allclose(total, 4 * 2.5, rtol=ROUTING_RTOL)
    np.testing.assert_allclose(gradient, 0, atol=MODEL_ATOL)
