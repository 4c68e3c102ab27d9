"""Trainings in several formats: what is equal, what differs."""

import numpy as np
import pytest

from dsv3lab.config import PrecisionConfig
from dsv3lab.train import Format, Trace, compare_formats
from tests.builders import FakeDataset, model_config, run_config, train_config

FP32 = PrecisionConfig(products="float32", activations="float32")
BF16 = PrecisionConfig(products="bfloat16", activations="bfloat16")


@pytest.mark.limit(120)  # compiles two training steps
def test_formats_share_start_and_batches_and_differ_by_their_rounding_only() -> None:
    formats = {
        "fp32": Format(precision=FP32, seed=0),
        "again": Format(precision=FP32, seed=0),
        "bf16": Format(precision=BF16, seed=0),
        "other seed": Format(precision=FP32, seed=1),
    }
    lines: list[str] = []
    config = run_config(
        model=model_config(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0),
        train=train_config(micro_batch=None),
    )
    found = compare_formats(config, FakeDataset(), formats, steps=3, progress=lines.append)
    assert len(lines) == 3 and list(found) == list(formats)
    exact = found["fp32"].loss
    assert exact.shape == found["fp32"].seconds.shape == (3,) and np.all(found["fp32"].seconds > 0)
    np.testing.assert_array_equal(found["again"].loss, exact)
    assert 0 < np.abs(found["bf16"].loss - exact).max() < np.abs(found["other seed"].loss - exact).max()
    assert exact[-1] != exact[0]


def test_late_is_the_last_quarter() -> None:
    assert Trace(loss=np.arange(8.0), seconds=np.ones(8)).late == 6.5
    assert Trace(loss=np.array([3.0, 2.0]), seconds=np.ones(2)).late == 2.0
