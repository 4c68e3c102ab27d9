"""Options beside V3's own: V2's routing and balance losses, other layer patterns, tied embeddings, dropout."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab.config import ConfigError, repeating_units
from dsv3lab.model import LOCAL, MoE
from dsv3lab.model import reading as reference
from dsv3lab.model.layers import dropout
from dsv3lab.model.routing import auxiliary_losses
from tests.builders import model_config, random_model
from tests.tolerances import DROPOUT_MEAN_ATOL, MODEL_ATOL, ROUTING_RTOL

V2 = {"scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 16.0, "n_routed_experts": 8}
VARIANTS = {
    "v2": V2 | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    "v2_lite": V2 | {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "q_lora_rank": None},
    "fragmented and tied": {"num_hidden_layers": 5, "dense_layer_interval": 2, "tie_word_embeddings": True},
    "unnormalised sigmoid": {"norm_topk_prob": False, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
}
TOKENS = np.random.default_rng(0).integers(0, 64, 7)


@pytest.mark.limit(30)  # compiles a forward pass each
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_forward_is_that_of_the_numpy_reading(changes) -> None:
    config = model_config(**changes)
    model = random_model(config)
    layers = [
        jax.tree.map(lambda a, i=i: a[i], block) for s in model.stacks for i in range(s.repeats) for block in s.unit
    ]
    assert tuple(isinstance(layer.ffn, MoE) for layer in layers) == config.moe_layers
    out = jax.jit(lambda tokens: model.forward(tokens, mtp=True))(jnp.asarray(TOKENS, jnp.int32)[None])
    hidden, depths, loads, balance = reference.forward(model, layers, TOKENS, config)
    np.testing.assert_allclose(out.hidden[0], hidden, atol=MODEL_ATOL)
    np.testing.assert_allclose(out.mtp[0][0], depths[0], atol=MODEL_ATOL)
    np.testing.assert_array_equal(out.loads, loads)
    np.testing.assert_allclose(out.balance, balance, rtol=MODEL_ATOL)
    assert (model.bias().size > 0) == (config.topk_method == "noaux_tc")


def test_the_head_of_a_tied_model_is_its_embedding() -> None:
    model = random_model(model_config(tie_word_embeddings=True))
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16)), jnp.float32)
    assert model.head is None
    np.testing.assert_allclose(model.unembed(hidden), hidden @ model.embedding.T, atol=MODEL_ATOL)


@pytest.mark.parametrize(
    ("kinds", "units"),
    [
        ("dddmmmmm", [("d", 3), ("m", 5)]),
        ("dmmdmmdmm", [("dmm", 3)]),
        ("dmdmd", [("dm", 2), ("d", 1)]),
        ("m", [("m", 1)]),
        ("ddmdmdm", [("d", 1), ("dm", 3)]),
    ],
)
def test_layers_are_found_to_repeat(kinds: str, units: list[tuple[str, int]]) -> None:
    found = repeating_units(tuple(kind == "m" for kind in kinds))
    assert [("".join("dm"[moe] for moe in unit), repeats) for unit, repeats in found] == units


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_group: topk_method greedy knows no groups, so it must be 1, not 2"):
        model_config(topk_method="greedy")
    model_config(topk_method="group_limited_greedy", n_group=4, topk_group=2)  # groups of one expert are strong enough


@pytest.mark.parametrize("tail", [0, 3])
def test_balance_losses_are_those_of_the_numpy_reading(tail: int) -> None:
    """Two sequences of which the last `tail` tokens do not count."""
    batch, seq, experts, top, groups, reach = 2, 9, 8, 3, 4, 2
    rng = np.random.default_rng(2)
    scores = rng.uniform(0.05, 0.95, (batch, seq, experts))
    ids = np.argsort(rng.normal(size=(batch, seq, experts)))[..., :top]
    valid = jnp.broadcast_to(jnp.arange(seq) < seq - tail, (batch, seq)) if tail else None
    ours = auxiliary_losses(jnp.asarray(scores, jnp.float32), jnp.asarray(ids), valid, groups=groups, top_groups=reach)
    counted = seq - tail
    scores, ids = scores[:, :counted], ids[:, :counted].tolist()
    by_sequence = [reference.v2_losses(s, i, groups=groups, top_groups=reach) for s, i in zip(scores, ids, strict=True)]
    expected = (reference.switch(scores.reshape(-1, experts), sum(ids, [])), *np.mean(by_sequence, axis=0))
    actual = (ours.switch, ours.expert, ours.device, ours.communication)
    np.testing.assert_allclose(actual, expected, rtol=10 * ROUTING_RTOL)


def test_dropout_keeps_the_mean_and_the_named_rate() -> None:
    x = jnp.full((200, 200), 3.0)
    out = dropout(x, rate=0.25, key=jax.random.key(0))
    assert set(np.unique(out).tolist()) == {0.0, 4.0}
    assert float(jnp.mean(out == 0)) == pytest.approx(0.25, abs=DROPOUT_MEAN_ATOL)
    assert dropout(x, rate=0.25, key=None) is x and dropout(x, rate=0.0, key=jax.random.key(0)) is x


@pytest.mark.parametrize("rate", ["residual_dropout", "attention_dropout"])
def test_dropout_needs_a_key_follows_it_and_differs_by_layer(rate: str) -> None:
    config = model_config(num_hidden_layers=2, first_k_dense_replace=2, num_nextn_predict_layers=0)
    model, tokens = random_model(config), jnp.asarray(TOKENS, jnp.int32)[None]
    dropping, names = dataclasses.replace(LOCAL, **{rate: 0.5}), frozenset({"embedding", "layers.0.hidden"})

    @jax.jit
    def run(key):
        return model.forward(tokens, key=key, capture=names, execution=dropping)

    plain = run(None)
    one, again, other = run(jax.random.key(1)), run(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_array_equal(one.hidden, again.hidden)
    for a, b in ((one, plain), (one, other)):
        assert float(jnp.abs(a.hidden - b.hidden).max()) > 100 * MODEL_ATOL


def test_each_layer_drops_other_elements() -> None:
    config = model_config(num_hidden_layers=3, first_k_dense_replace=3, num_nextn_predict_layers=0)
    model, tokens = random_model(config), jnp.asarray(TOKENS, jnp.int32)[None]
    names = frozenset({"embedding", "layers.0.hidden", "layers.1.hidden", "layers.2.hidden"})
    dropping = dataclasses.replace(LOCAL, residual_dropout=0.5)
    out = jax.jit(lambda key: model.forward(tokens, key=key, capture=names, execution=dropping))(jax.random.key(0))
    stream = [out.captured["embedding"], *(out.captured[f"layers.{i}.hidden"] for i in range(3))]
    untouched = [np.asarray(after == before) for before, after in itertools.pairwise(stream)]
    for mask in untouched:  # both sub-layers dropped the element: a quarter of 112
        assert 10 < mask.sum() < 50
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(untouched, 2))
