"""Generation: the loop against a scripted model, and the model's own continuations against plain forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsv3lab as dl
from dsv3lab import infer
from dsv3lab.infer.generate import extend
from tests import builders


@pytest.fixture(scope="module")
def model():
    return builders.random_model(builders.model_config())


def _scripted(tokens, lengths, step):
    """Counts upwards from the last token."""
    return tokens[np.arange(len(tokens)), lengths - 1] + 1


def test_texts_of_different_lengths_grow_until_the_stop_token_or_the_limit():
    grown = extend([[1, 2], [5], [8, 9, 10]], _scripted, max_new_tokens=4, stop=7, window=8)
    assert grown.tokens.tolist() == [[3, 4, 5, 6], [6, 7, 0, 0], [11, 12, 13, 14]]
    assert grown.lengths.tolist() == [4, 2, 4]
    assert grown.stopped.tolist() == [False, True, False]
    assert grown.continuations() == [[3, 4, 5, 6], [6], [11, 12, 13, 14]]


def test_the_loop_ends_early_when_every_text_has_stopped():
    calls = []
    extend([[6], [5]], lambda *a: calls.append(1) or _scripted(*a), max_new_tokens=100, stop=7, window=8)
    assert len(calls) == 2


def test_a_full_window_slides_and_keeps_the_last_tokens():
    seen = []

    def record(tokens, lengths, step):
        seen.append((tokens.tolist(), lengths.tolist()))
        return _scripted(tokens, lengths, step)

    extend([[1, 2, 3, 4, 5], [1, 2]], record, max_new_tokens=3, stop=None, window=4)
    assert seen == [
        ([[2, 3, 4, 5], [1, 2, 0, 0]], [4, 2]),
        ([[3, 4, 5, 6], [1, 2, 3, 0]], [4, 3]),
        ([[4, 5, 6, 7], [1, 2, 3, 4]], [4, 4]),
    ]


@pytest.mark.limit(90)  # two forward passes are compiled
def test_greedy_is_the_argmax_of_the_plain_forward_pass(model):
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6]]
    grown = dl.generate(model, prompts, max_new_tokens=3, sampler=infer.greedy, key=jax.random.key(0), window=16)
    assert grown.lengths.tolist() == [3, 3]
    for prompt, new in zip(prompts, grown.continuations(), strict=True):
        text = prompt + new
        logits = model(jnp.asarray([text + [0] * (16 - len(text))]))[0]
        for i in range(len(prompt), len(text)):
            assert text[i] == int(jnp.argmax(logits[i - 1]))


@pytest.mark.limit(90)  # one forward pass is compiled
def test_a_draw_follows_the_key_and_not_the_lengths_or_the_order_of_calls(model):
    sampler = infer.Nucleus(temperature=2.0, top_p=0.9)

    def texts(prompts, seed):
        key = jax.random.key(seed)
        return dl.generate(model, prompts, max_new_tokens=6, sampler=sampler, key=key, window=16).continuations()

    first = texts([[3, 1, 4], [7]], 0)
    assert texts([[3, 1, 4], [7]], 0) == first
    assert texts([[3, 1, 4], [7]], 1) != first
    assert texts([[3, 1, 4], [9, 9, 9]], 0)[0] == first[0]  # the other text does not matter


@pytest.mark.limit(90)  # one forward pass is compiled
def test_one_program_serves_every_length(model):
    traces = []

    def counting(logits, key):
        traces.append(1)  # runs while the program is traced, not when it is executed
        return infer.greedy(logits, key)

    for length in (1, 5, 9):
        dl.generate(model, [[2] * length] * 2, max_new_tokens=length, sampler=counting, window=16)
    assert len(traces) == 1


def test_prompts_that_cannot_be_continued_are_refused(model):
    with pytest.raises(ValueError, match="there is none"):
        dl.generate(model, [], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"prompts\[1\]: is empty"):
        dl.generate(model, [[1], []], max_new_tokens=1)
    with pytest.raises(ValueError, match="token 64 is outside the vocabulary of 64"):
        dl.generate(model, [[64]], max_new_tokens=1)
    with pytest.raises(ValueError, match="max_new_tokens: 0"):
        dl.generate(model, [[1]], max_new_tokens=0)
