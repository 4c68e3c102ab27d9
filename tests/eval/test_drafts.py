"""Drafts of the second next token: what is compared with what, and by chance."""

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab.eval import Drafts, second_token
from tests.builders import model_config, random_model

WINDOWS = np.random.default_rng(0).integers(0, 64, (3, 10)).astype(np.int32)


@pytest.mark.limit(60)  # compiles the model with its MTP module
def test_drafts_are_compared_with_the_main_model_one_position_later():
    model = random_model(model_config())
    out = eqx.filter_jit(lambda model, tokens: model.forward(tokens, mtp=True))(model, jnp.asarray(WINDOWS[:, :-1]))
    main, draft = (np.asarray(model.unembed(h), np.float64) for h in (out.hidden, out.mtp[0]))
    found = second_token(model, WINDOWS)
    n = 0
    for row in range(3):
        for i in range(8):  # position i drafts token i + 2 of a window of 10
            logits = draft[row, i]
            assert found.draft[n] == logits.argmax()
            assert found.main[n] == main[row, i + 1].argmax()
            assert found.target[n] == WINDOWS[row, i + 2]
            assert found.confidence[n] == pytest.approx(1 / np.exp(logits - logits.max()).sum(), rel=1e-4)
            n += 1
    assert n == len(found.draft) == len(found.accepted)


def test_acceptance_beside_chance():
    drafts = Drafts(
        draft=np.array([5, 5, 7, 7]), main=np.array([5, 5, 7, 2]), target=np.zeros(4), confidence=np.zeros(4)
    )
    assert drafts.accepted.mean() == 0.75
    assert drafts.chance == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)


def test_a_model_without_modules_is_refused():
    with pytest.raises(ValueError, match="no MTP module; set model.num_nextn_predict_layers"):
        second_token(replace(random_model(model_config()), mtp=()), WINDOWS)
