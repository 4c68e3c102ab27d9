"""How good the tokens are that the first MTP module would draft (DeepSeek-V3 report 5.4.3)."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsv3lab.model import LOCAL, DeepSeek, Execution


@dataclass(frozen=True)
class Drafts:
    """Every second next token of some windows, drafted one position early, beside the main model's own choice.

    draft: what the module drafts [drafts].
    main: what the main model says once it has read one token more [drafts].
    target: the token of the text [drafts].
    confidence: probability that the module gives its draft [drafts].
    """

    draft: np.ndarray
    main: np.ndarray
    target: np.ndarray
    confidence: np.ndarray

    @property
    def accepted(self) -> np.ndarray:
        """Where draft and main model agree [drafts]: greedy speculative decoding accepts exactly these."""
        return self.draft == self.main

    @property
    def chance(self) -> float:
        """The share that would agree if the same drafts stood anywhere: two models that know a few tokens only agree often."""
        size = 1 + int(max(self.draft.max(), self.main.max()))
        shares = [np.bincount(tokens, minlength=size) / len(tokens) for tokens in (self.draft, self.main)]
        return float(shares[0] @ shares[1])


def second_token(
    model: DeepSeek, windows: Int[Array, "batch seq_plus_one"] | np.ndarray, *, execution: Execution = LOCAL
) -> Drafts:
    """What MTP depth 1 drafts along the tokens of a text, all choices greedy.

    At position i the module has read t_0 .. t_{i+1} and drafts t_{i+2}; the main model reads the same tokens at
    position i + 1.

    Raises:
        ValueError: if the model has no MTP module.
    """
    if not model.mtp:
        raise ValueError("second_token: the model has no MTP module; set model.num_nextn_predict_layers to 1 or more")
    draft, main, confidence = jax.device_get(_choices(model, jnp.asarray(windows, jnp.int32), execution))
    return Drafts(
        draft=draft[:, :-1].ravel(),
        main=main[:, 1:].ravel(),
        target=np.asarray(windows)[:, 2:].ravel(),
        confidence=confidence[:, :-1].ravel(),
    )


@eqx.filter_jit
def _choices(
    model: DeepSeek, windows: Int[Array, "batch seq_plus_one"], execution: Execution
) -> tuple[Int[Array, "batch seq"], Int[Array, "batch seq"], Float[Array, "batch seq"]]:
    """At each position: the draft of depth 1, the main model's choice, and the draft's probability."""
    out = model.forward(windows[:, :-1], mtp=True, execution=execution)

    def row(hidden: tuple[Array, Array]) -> tuple[Array, Array, Array]:  # one window's logits at a time
        main, draft = (model.unembed(h, execution=execution).astype(jnp.float32) for h in hidden)
        return jnp.argmax(draft, axis=-1), jnp.argmax(main, axis=-1), jnp.max(jax.nn.softmax(draft), axis=-1)

    return jax.lax.map(row, (out.hidden, out.mtp[0]))
