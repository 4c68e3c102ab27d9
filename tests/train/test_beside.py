"""Training with MTP modules and without: equal starts, equal batches, and what differs."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab.train import with_and_without_mtp
from tests import tolerances
from tests.builders import FakeDataset, model_config, random_model, run_config, train_config


@pytest.mark.limit(120)  # compiles two training steps
def test_sides_whose_mtp_loss_weighs_nothing_learn_the_same_next_token() -> None:
    steps = 4
    train = train_config(micro_batch=None)
    train = replace(train, loss=replace(train.loss, mtp_weight=0.0, balance_alpha=0.0))
    model, seen, lines = random_model(model_config()), [], []
    with_mtp, without = with_and_without_mtp(
        model,
        run_config(train=train),
        FakeDataset(),
        steps=steps,
        observe=lambda step, model: seen.append((step, model)),
        every=3,
        progress=lines.append,
    )
    assert [step for step, _ in seen] == [0, 3, 4] and len(lines) == 2
    assert seen[0][1] is model and len(seen[-1][1].mtp) == 1
    assert float(jnp.abs(seen[-1][1].head - model.head).max()) > 0
    for side in (with_mtp, without):
        assert side.loss.shape == side.seconds.shape == (steps,) and np.all(side.seconds > 0)
    assert np.all(with_mtp.mtp_loss > 0) and np.all(without.mtp_loss == 0)
    assert without.loss[-1] != without.loss[0]
    np.testing.assert_allclose(with_mtp.loss, without.loss, rtol=tolerances.LOSS_RTOL)
