"""Generation without a cache: every token is a forward pass over a window of fixed size.

A window holds the last `window` tokens of a text at positions 0, 1, ..., padded on the right, so one compiled program
serves every length. Causal attention keeps the padding out of what stands before it. A text longer than the window
slides: its oldest tokens drop out, and the positions of the others move down with them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from dsv3lab.infer.sampler import Sampler, greedy
from dsv3lab.model import LOCAL, DeepSeek, Execution

_ROUND = 64
"""Windows are rounded up to a multiple of this, so that texts of similar length share one compiled program."""


@dataclass(frozen=True)
class Generation:
    """What was generated for each prompt.

    Attributes:
        tokens: new tokens, padded with 0 after `lengths`.
        lengths: new tokens of each text; the stop token, if one came, is the last of them.
        stopped: whether the text ended with the stop token rather than at `max_new_tokens`.
        prompts: the prompts, as they were given.
        window: tokens that the model saw at once.
    """

    tokens: Int[np.ndarray, "batch new"]
    lengths: Int[np.ndarray, " batch"]
    stopped: np.ndarray
    prompts: tuple[tuple[int, ...], ...]
    window: int

    def continuations(self) -> list[list[int]]:
        """The new tokens of each text, without padding and without the stop token: what a tokenizer decodes."""
        ends = self.lengths - self.stopped
        return [[int(t) for t in row[:end]] for row, end in zip(self.tokens, ends, strict=True)]


def generate(
    model: DeepSeek,
    prompts: Any,
    *,
    max_new_tokens: int,
    sampler: Sampler = greedy,
    key: PRNGKeyArray | None = None,
    stop: int | None = None,
    window: int | None = None,
    execution: Execution = LOCAL,
) -> Generation:
    """Continue each prompt, token by token.

    The same arguments give the same text. A text does not depend on the others of its batch beyond rounding: the draw
    for token n of prompt i comes from `fold_in(fold_in(key, n), i)`.

    Args:
        prompts: token ids, an array [batch, seq] or a list of lists of any lengths; none may be empty.
        max_new_tokens: most tokens added to each prompt.
        sampler: `greedy`, `Nucleus(...)`, or any hashable function of that form.
        key: source of randomness; `greedy` needs none.
        stop: a text ends when this token comes.
        window: most tokens that the model sees at once, at most its `max_position_embeddings`; None: the longest
            text possible here, rounded up to a multiple of 64, so that nothing slides out.
        execution: how the model's mathematics is carried out.

    Raises:
        ValueError: for no prompt, an empty prompt, a token outside the vocabulary or a size below 1.
    """
    texts = [[int(token) for token in prompt] for prompt in prompts]
    _check(texts, vocab=model.embedding.shape[0], max_new_tokens=max_new_tokens, window=window)
    if window is None:
        window = -(-(max(map(len, texts)) + max_new_tokens) // _ROUND) * _ROUND
    key = jax.random.key(0) if key is None else key

    def choose(tokens: np.ndarray, lengths: np.ndarray, step: int) -> np.ndarray:
        chosen = _next(
            model, jnp.asarray(tokens), jnp.asarray(lengths), jax.random.fold_in(key, step), sampler, execution
        )
        return np.asarray(chosen)

    return extend(texts, choose, max_new_tokens=max_new_tokens, stop=stop, window=window)


def extend(
    texts: Sequence[Sequence[int]],
    choose: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    *,
    max_new_tokens: int,
    stop: int | None,
    window: int,
) -> Generation:
    """The loop around a function that names the next token of each text.

    Args:
        texts: the prompts.
        choose: `(tokens int32 [batch, window], lengths int32 [batch], step) -> int [batch]`; row i holds
            `lengths[i]` tokens and then zeros. Texts that have ended stay in the batch and are ignored.
        max_new_tokens: most tokens added to each prompt.
        stop: a text ends when this token comes.
        window: tokens of a text that `choose` sees: the last ones.
    """
    grown = [list(text) for text in texts]
    new = np.zeros((len(texts), max_new_tokens), np.int32)
    lengths = np.zeros(len(texts), np.int32)
    stopped = np.zeros(len(texts), bool)
    for step in range(max_new_tokens):
        seen = [text[-window:] for text in grown]
        tokens = np.zeros((len(texts), window), np.int32)
        for row, text in enumerate(seen):
            tokens[row, : len(text)] = text
        chosen = choose(tokens, np.asarray([len(text) for text in seen], np.int32), step)
        for row in np.flatnonzero(~stopped):
            grown[row].append(int(chosen[row]))
            new[row, step] = chosen[row]
            lengths[row] += 1
        if stop is not None:
            stopped |= chosen == stop
        if stopped.all():
            break
    prompts = tuple(tuple(text) for text in texts)
    return Generation(tokens=new, lengths=lengths, stopped=stopped, prompts=prompts, window=window)


@eqx.filter_jit
def _next(
    model: DeepSeek,
    tokens: Int[Array, "batch window"],
    lengths: Int[Array, " batch"],
    key: PRNGKeyArray,
    sampler: Sampler,
    execution: Execution,
) -> Int[Array, " batch"]:
    """The next token of each text; only the logits after its last token are computed."""
    rows = jnp.arange(tokens.shape[0])
    hidden = model.forward(tokens, execution=execution).hidden[rows, lengths - 1]
    logits = model.unembed(hidden, execution=execution)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    return jax.vmap(sampler)(logits, keys)


def _check(texts: list[list[int]], *, vocab: int, max_new_tokens: int, window: int | None) -> None:
    if not texts:
        raise ValueError("prompts: there is none; give at least one list of token ids")
    for name, value in (("max_new_tokens", max_new_tokens), ("window", window)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: {value} must be at least 1")
    for index, text in enumerate(texts):
        if not text:
            raise ValueError(f"prompts[{index}]: is empty; start it with the end-of-document token")
        outside = [token for token in text if not 0 <= token < vocab]
        if outside:
            raise ValueError(f"prompts[{index}]: token {outside[0]} is outside the vocabulary of {vocab}")
