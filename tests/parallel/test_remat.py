"""Rematerialisation changes what is kept for the backward pass, and no gradient."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab.config import ParallelConfig
from dsv3lab.parallel import make_execution
from dsv3lab.parallel.remat import KEPT
from tests import builders, tolerances

PLAN = ParallelConfig(data=1, simulated=True)
CONFIG = builders.model_config(num_hidden_layers=2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 12)), jnp.int32)


def _objective(policy):
    execution = make_execution(PLAN, remat=policy, scan=False)

    def objective(model):
        out = model.forward(TOKENS, mtp=True, execution=execution)
        return sum(jnp.sum(jnp.sin(h)) for h in (out.hidden, *out.mtp)) + out.balance

    return objective


@pytest.mark.limit(90)  # compiles four gradients
def test_every_policy_has_the_gradients_of_none() -> None:
    model = builders.random_model(CONFIG)
    exact = eqx.filter_jit(eqx.filter_grad(_objective("none")))(model)
    for policy in KEPT:
        found = eqx.filter_jit(eqx.filter_grad(_objective(policy)))(model)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            scale = float(jnp.abs(b).max()) or 1.0
            np.testing.assert_allclose(a, b, atol=tolerances.GRADIENT_RTOL * scale, err_msg=policy)
