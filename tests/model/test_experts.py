"""Dropless experts: every grouped product and the local exchange against the slow truth."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsv3lab.model import Execution, Experts, MoE
from dsv3lab.model import reading as reference
from dsv3lab.model.exchange import expert_order, local_exchange
from dsv3lab.model.grouped import BLOCK, REMAINDER, grouped_matmul
from tests.builders import model_config, random_model
from tests.tolerances import GROUPED_ATOL, MODEL_ATOL, ROUTING_RTOL

ROWS, INNER, OUTER, EXPERTS = 2 * BLOCK + 44, 6, 5, 4
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(ROWS, INNER)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(EXPERTS, INNER, OUTER)), jnp.float32)
DY = jnp.asarray(RNG.normal(size=(ROWS, OUTER)), jnp.float32)


def _shape(*shape: int, dtype: type = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@ft.cache
def product(implementation: str | None):
    def both(sizes: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, implementation=implementation), X, W)
        return y, *pull(DY)

    return jax.jit(both)


@given(cuts=st.lists(st.integers(0, ROWS), min_size=EXPERTS - 1, max_size=EXPERTS - 1))
@example(cuts=[0, 0, 0])
@example(cuts=[ROWS, ROWS, ROWS])
@example(cuts=[0, BLOCK, BLOCK])
@example(cuts=[BLOCK - 1, BLOCK, 2 * BLOCK + 1])
@example(cuts=[ROWS - REMAINDER - 3, ROWS - 3, ROWS - 1])  # the end of all rows cuts the last blocks short
@settings(deadline=None, max_examples=40)
def test_implementations_agree_for_groups_of_any_size(cuts: list[int]) -> None:
    sizes = jnp.asarray(np.diff([0, *sorted(cuts), ROWS]), jnp.int32)
    truth = product("reference")(sizes)
    for implementation in ("ragged", "blocked", None):
        for name, a, b in zip(("y", "dx", "dw"), product(implementation)(sizes), truth, strict=True):
            np.testing.assert_allclose(a, b, atol=GROUPED_ATOL, err_msg=f"{implementation}: {name}")


@pytest.mark.parametrize("rows", [0, 1, REMAINDER - 1, REMAINDER + 5])
def test_few_rows_are_multiplied_like_many(rows: int) -> None:
    sizes = jnp.asarray([rows // 2, 0, rows - rows // 2, 0], jnp.int32)

    def both(implementation: str) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, implementation=implementation), X[:rows], W)
        return y, *pull(DY[:rows])

    for name, a, b in zip(("y", "dx", "dw"), both("blocked"), both("reference"), strict=True):
        np.testing.assert_allclose(a, b, atol=GROUPED_ATOL, err_msg=name)


@pytest.mark.parametrize("implementation", ["ragged", "blocked"])
def test_the_gradient_of_float32_weights_is_never_rounded_to_bfloat16(implementation: str) -> None:
    sizes, ends = jnp.asarray([300, 0, 511, ROWS - 811], jnp.int32), [300, 300, 811, ROWS]
    x, dy = X.astype(jnp.bfloat16), DY.astype(jnp.bfloat16)
    y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, implementation=implementation), x, W)
    dx, dw = pull(dy)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    wide_x, wide_dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    np.testing.assert_allclose(dw, np.stack([wide_x[part].T @ wide_dy[part] for part in parts]), atol=GROUPED_ATOL)
    assert np.any(np.asarray(dw.astype(jnp.bfloat16), np.float32) != np.asarray(dw))
    rounded = np.asarray(W.astype(jnp.bfloat16), np.float64)
    for found, wanted in (
        (y, np.concatenate([wide_x[part] @ w for part, w in zip(parts, rounded, strict=True)])),
        (dx, np.concatenate([wide_dy[part] @ w.T for part, w in zip(parts, rounded, strict=True)])),
    ):
        np.testing.assert_allclose(np.asarray(found, np.float64), wanted, atol=GROUPED_ATOL, rtol=2**-8)


def test_the_fast_path_needs_at_most_a_fifth_of_the_temporaries_of_ragged_dot() -> None:
    """At the sizes of `benchmarks/grouped_matmul.py`, compiled and not run."""
    config = model_config(hidden_size=256, n_routed_experts=16, moe_intermediate_size=512)
    weights = eqx.filter_eval_shape(lambda key: Experts.init(config, key=key), jax.random.key(0))
    rows, gates, sizes = _shape(4096 * 4, 256), _shape(4096 * 4), _shape(16, dtype=jnp.int32)

    def temporaries(implementation: str) -> int:
        execution = Execution(grouped_matmul=ft.partial(grouped_matmul, implementation=implementation))

        def loss(weights: Experts, rows: jax.Array, gates: jax.Array, sizes: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(weights(rows, gates, sizes, execution=execution)))

        program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(weights, rows, gates, sizes).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert 5 * temporaries("blocked") <= temporaries("ragged")


def test_order_is_a_stable_sort_and_place_its_inverse() -> None:
    ids = jnp.asarray(RNG.integers(0, EXPERTS, (9, 2)), jnp.int32)
    source, place, sizes = expert_order(ids, num_experts=EXPERTS)
    np.testing.assert_array_equal(source, np.argsort(np.asarray(ids).ravel(), kind="stable"))
    np.testing.assert_array_equal(np.asarray(place).ravel()[np.asarray(source)], np.arange(18))
    np.testing.assert_array_equal(sizes, np.bincount(np.asarray(ids).ravel(), minlength=EXPERTS))


def test_exchange_is_the_gated_sum_over_chosen_experts_with_its_gradient() -> None:
    tokens, top = 7, 2
    x, gates = X[:tokens], jnp.asarray(RNG.uniform(size=(tokens, top)), jnp.float32)
    ids = jnp.asarray([RNG.choice(EXPERTS, top, replace=False) for _ in range(tokens)], jnp.int32)
    square = W[:, :, :1] * jnp.ones(INNER)

    def sorted_sum(x: jax.Array, gates: jax.Array, w: jax.Array) -> jax.Array:
        def expert_fn(rows: jax.Array, row_gates: jax.Array, sizes: jax.Array) -> jax.Array:
            return jnp.tanh(grouped_matmul(rows, w, sizes)) * row_gates[:, None]

        return local_exchange(expert_fn, x, ids, gates, num_experts=EXPERTS)

    def plain_sum(x: jax.Array, gates: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.einsum("tk,tko->to", gates, jnp.tanh(jnp.einsum("ti,tkio->tko", x, w[ids])))

    weights = DY[:tokens, :1]
    both = [
        jax.jit(jax.value_and_grad(lambda *a, f=f: jnp.sum(f(*a) * weights), argnums=(0, 1, 2)))(x, gates, square)
        for f in (sorted_sum, plain_sum)
    ]
    jax.tree.map(ft.partial(np.testing.assert_allclose, atol=MODEL_ATOL, rtol=MODEL_ATOL), *both)


def test_an_expert_layer_is_that_of_the_numpy_reading() -> None:
    """With biases that matter and a last token that does not count; in single operations, so nothing is compiled."""
    seq, config = 24, model_config(n_routed_experts=8, n_group=4, topk_group=2)
    model = random_model(config)
    layer: MoE = jax.tree.map(lambda a: a[0], model.stacks[1].unit[0].ffn)
    bias = jnp.asarray(np.random.default_rng(1).normal(scale=0.3, size=8), jnp.float32)
    layer = eqx.tree_at(lambda moe: moe.router.bias, layer, bias)
    x = np.random.default_rng(2).normal(size=(1, seq, config.hidden_size)).astype(np.float32)
    plain = Execution(grouped_matmul=ft.partial(grouped_matmul, implementation="reference"))
    out, seen = layer(jnp.asarray(x), valid=jnp.arange(seq)[None] < seq - 1, execution=plain)
    wanted, chosen, scores = reference.moe(layer, x[0].astype(float), config)
    assert seen.ids.tolist() == chosen
    np.testing.assert_allclose(seen.scores, scores, rtol=10 * ROUTING_RTOL)
    np.testing.assert_allclose(out[0], wanted, atol=MODEL_ATOL)
    np.testing.assert_array_equal(seen.loads, np.bincount(np.ravel(chosen[:-1]), minlength=8))
    balance = reference.balance(scores[:-1], top=config.num_experts_per_tok)
    np.testing.assert_allclose(seen.balance, balance, rtol=10 * ROUTING_RTOL)
