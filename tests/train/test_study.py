"""Short trainings side by side: what variants share, and that each weight of a balance term does its own work."""

from dataclasses import replace

import numpy as np
import pytest

from dsv3lab.model import reading
from dsv3lab.train import Variant, compare, losses
from tests import builders, tolerances

STEPS = 3
MODEL = builders.model_config(num_hidden_layers=2, num_nextn_predict_layers=0)
OTHER = replace(MODEL, n_routed_experts=6, n_group=1, topk_group=1)
VARIANTS = {
    "nothing": Variant(model=MODEL, seed=0),
    "again": Variant(model=MODEL, seed=0),
    "bias": Variant(model=MODEL, seed=0, bias_update_speed=0.03),
    "switch": Variant(model=MODEL, seed=0, switch_alpha=1.0),
    "sequence": Variant(model=MODEL, seed=0, balance_alpha=1.0),
    "seed": Variant(model=MODEL, seed=1),
    "other": Variant(model=OTHER, seed=0, bias_update_speed=0.03),
}


@pytest.fixture(scope="module")
def run():
    config = builders.run_config(model=MODEL, train=builders.train_config(micro_batch=None))
    said = []
    history = compare(config, builders.FakeDataset(), VARIANTS, steps=STEPS, progress=said.append)
    return history, said


@pytest.mark.limit(120)  # compiles two training steps
def test_the_same_variant_twice_is_the_same_to_the_bit(run):
    history, said = run
    assert list(history) == list(VARIANTS)
    for name in ("loss", "maxvio", "loads", "bias"):
        assert np.array_equal(getattr(history["nothing"], name), getattr(history["again"], name))
    assert history["nothing"].seconds.shape == (STEPS,) and (history["nothing"].seconds > 0).all()
    assert sum(line.startswith("compiled") for line in said) == 2  # one program for each model


def test_variants_start_equal_and_each_weight_changes_the_course(run):
    history, _ = run
    first = {name: one.loss[0] for name, one in history.items()}
    last = {name: one.loss[-1] for name, one in history.items()}
    same = ["nothing", "again", "bias", "switch", "sequence"]
    assert len({first[name] for name in same}) == 1 and first["seed"] != first["nothing"]
    assert len({last[name] for name in same if name != "bias"}) == 3


def test_biases_follow_the_loads(run):
    history, _ = run
    assert not history["nothing"].bias.any()
    bias = np.zeros_like(history["bias"].bias[0])
    for loads, after in zip(history["bias"].loads, history["bias"].bias, strict=True):
        bias = reading.bias_update(bias, loads, speed=0.03)
        np.testing.assert_allclose(after, bias, rtol=tolerances.SCHEDULE_RTOL, atol=0)
    assert history["other"].bias.shape == (STEPS, 1, 6)


def test_a_weight_that_is_zero_leaves_no_trace_and_an_argument_does():
    import jax
    import jax.numpy as jnp

    from dsv3lab.model import DeepSeek

    model = jax.eval_shape(lambda: DeepSeek.init(MODEL, key=jax.random.key(0)))
    windows = jax.ShapeDtypeStruct((2, builders.SEQUENCE_LENGTH + 1), jnp.int32)

    def depends(alpha):
        def objective(model, windows, traced):
            config = builders.loss_config(switch_alpha=traced if alpha is None else alpha)
            return losses.compute(model, windows, config=config)[0]

        jaxpr = jax.make_jaxpr(objective)(model, windows, jnp.float32(0))
        alphas = jaxpr.jaxpr.invars[-1]
        return any(alphas in equation.invars for equation in jaxpr.jaxpr.eqns)

    assert depends(None) and not depends(0.0)
