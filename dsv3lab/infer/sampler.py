"""How the next token is chosen from logits: the likeliest, or a draw from the likely ones."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

Sampler = Callable[[Float[Array, " vocab"], PRNGKeyArray], Int[Array, ""]]
"""`(logits of one text, key) -> token`; hashable, since a compiled step holds it as a constant."""


def greedy(logits: Float[Array, " vocab"], key: PRNGKeyArray) -> Int[Array, ""]:
    """The likeliest token, of equal ones the lowest id; the key is not used."""
    del key
    return jnp.argmax(logits).astype(jnp.int32)


@dataclass(frozen=True, kw_only=True)
class Nucleus:
    """Draw from the smallest set of tokens that holds `top_p` of the probability (arXiv:1904.09751).

    temperature: divides the logits before the softmax; below 1 sharpens, above 1 flattens.
    top_p: probability kept; 1 keeps everything. The likeliest token always stays.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature: {self.temperature} must be above 0; use `greedy` for the likeliest token")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p} must be above 0 and at most 1")

    def __call__(self, logits: Float[Array, " vocab"], key: PRNGKeyArray) -> Int[Array, ""]:
        """One token."""
        logits = logits.astype(jnp.float32) / self.temperature
        order = jnp.argsort(-logits)
        probability = jax.nn.softmax(logits[order])
        # A token stays if the likelier ones together do not reach `top_p` yet, so the first always does.
        before = jnp.cumsum(probability) - probability
        kept = jnp.where((before < self.top_p) | (jnp.arange(logits.size) == 0), logits[order], -jnp.inf)
        return order[jax.random.categorical(key, kept)].astype(jnp.int32)
