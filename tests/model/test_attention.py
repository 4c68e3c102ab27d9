"""MLA and rotary positions: the NumPy reading, distances, documents, and YaRN's published numbers."""

import functools as ft
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab.config import YarnConfig, config
from dsv3lab.model import reading as reference
from dsv3lab.model.attention import MLA, attend
from dsv3lab.model.causal import causal_attention
from dsv3lab.model.rope import correction_range, inverse_frequencies, rotary_angles, rotate, softmax_scale
from tests.builders import model_config
from tests.tolerances import MODEL_ATOL

RNG = np.random.default_rng(0)
V3_YARN = YarnConfig(
    factor=40.0, original_max_position_embeddings=4096, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0
)


SHORT_YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0, "beta_slow": 0.1}


@pytest.mark.parametrize("query_rank", [8, None])
@pytest.mark.parametrize("yarn", [None, SHORT_YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}])
def test_mla_is_that_of_the_numpy_reading(query_rank: int | None, yarn: dict[str, float] | None) -> None:
    settings = model_config(q_lora_rank=query_rank, qk_rope_head_dim=8, rope_theta=20.0, rope_scaling=yarn)
    layer = MLA.init(settings, key=jax.random.key(0))
    x = RNG.normal(size=(2, 6, settings.hidden_size)).astype(np.float32)
    out = attend(layer, jnp.asarray(x), settings)
    expected = np.array([reference.mla(layer, row.astype(float), settings) for row in x])
    np.testing.assert_allclose(out, expected, atol=MODEL_ATOL)
    if yarn is not None:  # every part of it moves the result
        shares = [reference.frequency(i, 8, 20.0, settings.rope_scaling) * 20 ** (i / 4) for i in range(4)]
        assert shares[0] == 1.0 and 0.25 < shares[2] < 1.0, shares
        without = np.array([reference.mla(layer, row.astype(float), replace(settings, rope_scaling=None)) for row in x])
        assert np.abs(expected - without).max() > 100 * MODEL_ATOL


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = (jnp.asarray(RNG.normal(size=(1, 1, 8)), jnp.float32) for _ in range(2))

    def score(at: int, seen_from: int) -> float:
        turned = [
            rotate(x, cos=cos, sin=sin)
            for x, p in ((q, seen_from), (k, at))
            for cos, sin in [rotary_angles(jnp.array([[p]]), width=8, theta=100.0, yarn=None)]
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    assert abs(score(3, 10) - score(40, 47)) < MODEL_ATOL
    assert abs(score(3, 10) - score(3, 11)) > 100 * MODEL_ATOL


@pytest.mark.parametrize("yarn", [None, SHORT_YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}])
def test_rotate_is_that_of_the_readings_in_pairs_in_halves_and_in_scores(yarn: dict[str, float] | None) -> None:
    settings = model_config(qk_rope_head_dim=8, rope_theta=20.0, rope_scaling=yarn)
    q, k = RNG.normal(size=(2, 8))
    cos, sin = rotary_angles(jnp.array([[9, 4]]), width=8, theta=20.0, yarn=settings.rope_scaling)
    at_9, at_4 = np.asarray(rotate(jnp.asarray(np.stack([q, k])[None], jnp.float32), cos=cos, sin=sin))[0]
    np.testing.assert_allclose(at_9, reference.rope(q, 9, settings), atol=MODEL_ATOL)
    order = np.append(np.arange(0, 8, 2), np.arange(1, 8, 2))
    np.testing.assert_allclose(at_9[order], reference.rope_halves(q[order], 9, settings), atol=MODEL_ATOL)
    assert np.abs(at_9 - reference.rope_halves(q, 9, settings)).max() > 1000 * MODEL_ATOL
    (score,) = reference.rope_scores(
        q, k, np.array([5]), inverse_frequencies(8, theta=20.0, yarn=settings.rope_scaling)
    )
    length = reference.temperature(settings.rope_scaling, "mscale")
    length /= reference.temperature(settings.rope_scaling, "mscale_all_dim")
    assert at_9 @ at_4 == pytest.approx(score * length**2, abs=10 * MODEL_ATOL)


def test_yarn_reproduces_the_published_numbers_of_v3() -> None:
    v3 = config("v3")
    assert v3.rope_scaling == V3_YARN
    assert correction_range(64, theta=10000.0, yarn=V3_YARN) == (10, 23)
    assert softmax_scale(v3) == pytest.approx(0.1352338, abs=5e-8)
    plain = inverse_frequencies(64, theta=10000.0, yarn=None)
    scaled = inverse_frequencies(64, theta=10000.0, yarn=V3_YARN)
    np.testing.assert_array_equal(scaled[:11], plain[:11])
    np.testing.assert_allclose(scaled[23:], plain[23:] / 40)
    assert np.all((scaled[11:23] < plain[11:23]) & (scaled[11:23] > plain[11:23] / 40))


def test_yarn_of_factor_one_is_plain() -> None:
    one = YarnConfig(**(vars(V3_YARN) | {"factor": 1.0, "mscale": 0.7}))
    positions = jnp.arange(5)[None]
    for a, b in zip(
        rotary_angles(positions, width=8, theta=1e4, yarn=one),
        rotary_angles(positions, width=8, theta=1e4, yarn=None),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert softmax_scale(model_config(rope_scaling=vars(one))) == softmax_scale(model_config())


@pytest.mark.parametrize(("seq", "with_segments"), [(1, False), (64, True), (100, False), (130, True)])
def test_blockwise_causal_attention_equals_the_plain_one_with_its_gradient(seq: int, with_segments: bool) -> None:
    q, k = (jnp.asarray(RNG.normal(size=(2, seq, 2, 6)), jnp.float32) for _ in range(2))
    v, dy = (jnp.asarray(RNG.normal(size=(2, seq, 2, 4)), jnp.float32) for _ in range(2))
    segments = jnp.asarray(np.sort(RNG.integers(0, 3, (2, seq)), axis=1)) if with_segments else None

    @ft.partial(jax.jit, static_argnums=0)
    def run(f):
        y, pull = jax.vjp(lambda *a: f(*a, scale=0.4, segments=segments), q, k, v)
        return y, *pull(dy)

    blocked, plain = (run(ft.partial(causal_attention, implementation=name)) for name in ("blocked", "reference"))
    for a, b in zip(blocked, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=MODEL_ATOL)
