"""Samplers against probabilities done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab import infer

PROBABILITY = np.array([0.1, 0.5, 0.15, 0.25])
LOGITS = jnp.log(jnp.asarray(PROBABILITY, jnp.float32)) + 3.0
DRAWS = 4000


def _frequencies(sampler):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    tokens = jax.vmap(lambda key: sampler(LOGITS, key))(keys)
    return np.bincount(np.asarray(tokens), minlength=4) / DRAWS


def _close(found, wanted):
    """Within five standard deviations of a binomial frequency."""
    return np.all(np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / DRAWS))


def test_greedy_takes_the_likeliest_and_of_equals_the_first():
    assert int(infer.greedy(LOGITS, jax.random.key(1))) == 1
    assert int(infer.greedy(jnp.zeros(4), jax.random.key(1))) == 0


def test_without_limits_draws_follow_the_softmax():
    assert _close(_frequencies(infer.Nucleus()), PROBABILITY)


def test_temperature_reshapes_the_probabilities():
    sharper = PROBABILITY**2 / np.sum(PROBABILITY**2)
    assert _close(_frequencies(infer.Nucleus(temperature=0.5)), sharper)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, [1]), (0.6, [1, 3]), (0.8, [1, 2, 3]), (0.95, [0, 1, 2, 3])])
def test_the_nucleus_is_the_smallest_set_that_holds_top_p(top_p, kept):
    found = _frequencies(infer.Nucleus(top_p=top_p))
    assert np.flatnonzero(found).tolist() == kept
    wanted = np.where(np.isin(np.arange(4), kept), PROBABILITY, 0)
    assert _close(found, wanted / wanted.sum())


def test_senseless_settings_are_refused():
    with pytest.raises(ValueError, match="temperature: 0"):
        infer.Nucleus(temperature=0.0)
    with pytest.raises(ValueError, match="top_p: 1.5"):
        infer.Nucleus(top_p=1.5)
