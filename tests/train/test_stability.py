"""The stability run: what it trains, what it counts, and what it says of the step that is spoilt."""

from dataclasses import replace

import numpy as np
import pytest

from dsv3lab.train import Endurance, endure, guard, small_model
from tests import builders

CONFIG = builders.run_config(
    model=builders.model_config(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0)
)


def endurance(**changes) -> Endurance:
    numbers = np.array([4.0, 3.0, np.nan, 2.0])
    made = Endurance(
        loss=numbers,
        grad_norm=np.array([90.0, 1.0, np.nan, 3.0]),
        maxvio=numbers,
        seconds=numbers,
        spoilt=3,
        nonfinite=1,
        spikes=0,
        changed=0,
        elements=1,
    )
    return replace(made, **changes)


@pytest.mark.limit(90)  # compiles the step twice
def test_the_spoilt_step_changes_nothing_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, shown = {}, []
    run = endure(
        CONFIG.model,
        CONFIG,
        builders.FakeDataset(),
        steps=10,
        spoilt=4,
        observe=lambda number, found: seen.update({number: found["loss"]}),
        progress=shown.append,
    )
    assert list(seen) == list(range(1, 11))
    assert np.isnan(run.loss[3]) and np.isfinite(np.delete(run.loss, 3)).all()
    assert (run.nonfinite, run.changed) == (1, 0) and run.elements > 1000
    assert any(line.startswith("step 4: not finite") for line in shown)
    assert np.array_equal(run.loss, list(seen.values()), equal_nan=True)

    from dsv3lab.train import programs

    monkeypatch.setattr(guard, "choose", lambda good, new, old: new)  # nothing is skipped any more
    programs.step.cache_clear()
    with pytest.raises(guard.Diverged, match="3 steps in a row"):
        endure(CONFIG.model, CONFIG, builders.FakeDataset(), steps=10, spoilt=4, observe=lambda *_: None)
    programs.step.cache_clear()


def test_a_step_outside_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="step 11 is to be spoilt"):
        endure(CONFIG.model, CONFIG, builders.FakeDataset(), steps=10, spoilt=11, observe=lambda *_: None)


def test_means_and_medians_leave_the_spoilt_step_out() -> None:
    assert endurance().mean_loss(2, 4) == 2.5
    assert endurance().norm_over_median(1) == 1.5  # of 1 and 3; the 90 lies in the warm-up


def test_the_small_model_keeps_every_part() -> None:
    config = builders.run_config()
    small = small_model(replace(config, study=replace(config.study, stability_width=8)))
    big = config.model
    assert (small.hidden_size, small.num_hidden_layers) == (8, 2)
    assert (small.intermediate_size, small.kv_lora_rank, small.qk_rope_head_dim) == (16, 4, 2)
    for name in ("n_routed_experts", "num_experts_per_tok", "n_group", "num_nextn_predict_layers", "vocab_size"):
        assert getattr(small, name) == getattr(big, name)
