import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab import config as configs
from dsv3lab.data import Dataset, prepare
from dsv3lab.eval import Score, evaluate, overall, validation_loss
from dsv3lab.model import abstract
from tests import tolerances
from tests.builders import model_config
from tests.data.packages import data_config, two_packages

TRACES: list[tuple[int, ...]] = []


class Table(eqx.Module):
    """A model whose logits are a row of a table, chosen by the last token."""

    logits: jax.Array

    def forward(self, tokens: jax.Array, *, mtp: bool, execution: Any) -> SimpleNamespace:
        assert not mtp
        TRACES.append(tokens.shape)
        return SimpleNamespace(hidden=self.logits[tokens])

    def unembed(self, hidden: jax.Array) -> jax.Array:
        return hidden


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    site: Path = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        two_packages(site, patch)
        yield prepare(data_config(), site / "root", progress=lambda line: None)


def test_the_loss_is_the_sum_over_the_counted_targets():
    logits = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    windows = np.random.default_rng(1).integers(0, 7, (5, 4))
    nats = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))[:, None] - logits
    costs = nats[windows[:, :-1], windows[:, 1:]].reshape(-1)
    for targets in (15, 13, 12, 1):
        for batch_size in (2, 5, 8):
            total, count = validation_loss(Table(jnp.asarray(logits)), windows, batch_size=batch_size, targets=targets)
            assert count == targets
            assert total == pytest.approx(costs[:targets].sum(), rel=tolerances.FLOAT32_LOSS_RTOL)
    assert validation_loss(Table(jnp.asarray(logits)), windows, batch_size=2)[1] == 15


def test_one_program_serves_every_batch():
    TRACES.clear()
    windows = np.zeros((11, 9), np.int32)
    validation_loss(Table(jnp.zeros((3, 3))), windows, batch_size=4)
    validation_loss(Table(jnp.ones((3, 3))), windows[:3], batch_size=4, targets=5)
    assert TRACES == [(4, 8)]


def test_a_cost_that_is_not_finite_is_not_hidden_and_padding_does_not_add_one():
    broken = jnp.zeros((3, 3)).at[2].set(jnp.nan)  # after token 2, nothing is predicted
    windows = np.array([[0, 1, 2], [2, 0, 0]])
    assert math.isnan(validation_loss(Table(broken), windows, batch_size=2)[0])
    assert validation_loss(Table(broken), windows, batch_size=2, targets=2)[0] == pytest.approx(2 * math.log(3))


def test_a_uniform_model_costs_the_logarithm_of_the_vocabulary(dataset: Dataset):
    config = configs.EvalConfig(every=1, batch_size=8)
    lines: list[str] = []
    model = Table(jnp.zeros((dataset.vocab_size, dataset.vocab_size)))
    found = evaluate(model, dataset, config=config, progress=lines.append)
    assert list(found.domains) == list(dataset.domains) and len(lines) == len(dataset.domains)
    for name, score in found.domains.items():
        held_out = dataset.validation(name)
        assert score.tokens == held_out.targets and score.bytes == sum(held_out.n_bytes)
        bits = math.log2(dataset.vocab_size) * held_out.targets / sum(held_out.n_bytes)
        assert score.bits_per_byte == pytest.approx(bits, rel=tolerances.FLOAT32_LOSS_RTOL)
        assert score.perplexity == pytest.approx(dataset.vocab_size, rel=1e-4)
    assert found.overall.bytes == sum(score.bytes for score in found.domains.values())


def test_evaluation_covers_as_many_documents_as_configured(dataset: Dataset):
    config = configs.EvalConfig(every=1000, batch_size=8)
    model = Table(jnp.zeros((dataset.vocab_size, dataset.vocab_size)))
    found = evaluate(model, dataset, config=config, progress=lambda line: None)
    for name, score in found.domains.items():
        part = dataset.validation(name, every=1000)
        assert (score.bytes, score.tokens) == (part.n_bytes[0], part.targets)
    assert found.domains["source"].bytes < sum(dataset.validation("source").n_bytes)


def test_overall_is_weighted_by_the_training_mixture():
    scores = {
        "a": Score(loss=1.0, perplexity=math.e, bits_per_byte=2.0, tokens=10, bytes=30),
        "b": Score(loss=3.0, perplexity=math.e**3, bits_per_byte=4.0, tokens=1, bytes=2),
    }
    assert overall(scores, {"a": 0.75, "b": 0.25}) == Score(1.5, math.exp(1.5), 2.5, 11, 32)


def test_a_diverged_model_has_a_score():
    worst = overall({"a": Score(1e9, math.inf, 1e9, 1, 1)}, {"a": 1.0})
    assert worst.loss == 1e9 and math.isfinite(worst.perplexity)


def test_the_network_is_evaluated_on_its_own_next_token_logits():
    rng = np.random.default_rng(0)
    shapes = abstract(model_config(num_hidden_layers=1, num_nextn_predict_layers=0))
    model = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), shapes)
    windows = rng.integers(0, 64, (3, 9)).astype(np.int32)
    logits = np.asarray(eqx.filter_jit(lambda m, tokens: m(tokens))(model, jnp.asarray(windows[:, :-1])), np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    nats = np.log(np.exp(shifted).sum(axis=-1)) - np.take_along_axis(shifted, windows[:, 1:, None], -1)[..., 0]
    total, count = validation_loss(model, windows, batch_size=2)
    assert count == 24
    assert total == pytest.approx(nats.sum(), rel=tolerances.FLOAT32_LOSS_RTOL)
