"""Rematerialisation by named policy: what of a unit of blocks is kept for its backward pass, and what is made anew.

What a policy keeps it names by the `place` of the linear layer that made it, so the model knows nothing of this.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name

from dsv3lab.model import Execution

Policy = Literal["none", "full", "products", "report"]
MIXED = "attention.mixed"
PRODUCTS = (
    *("attention.query_down", "attention.query_up", "attention.latent_down", "attention.latent_up", "attention.out"),
    *("ffn.gate_up", "ffn.down", "experts.gate_up", "experts.down"),
)
KEPT: dict[Policy, tuple[str, ...]] = {
    "full": (),
    "products": (*PRODUCTS, MIXED),
    "report": tuple(
        place for place in (*PRODUCTS, MIXED) if place not in ("attention.query_up", "attention.latent_up")
    ),
}
"""What each policy keeps of a unit beside its input.

full: nothing.
products: the outputs of linear layers and the heads' mixed values; norms, rotations, softmax, SwiGLU and routing are
    made anew.
report: the same without the up-projections of MLA, as in the DeepSeek-V3 report (3.2.3: RMSNorm and the MLA
    up-projections; 3.3.3: the output of SwiGLU, whose inputs it caches in FP8 and this in the activations' format).
"""


@dataclass(frozen=True)
class _Named:
    """`function` whose result is known to the policies by its `place`, or as `name`."""

    function: Callable[..., Any]
    name: str | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        name = options["place"] if self.name is None else self.name
        return checkpoint_name(self.function(*args, **options), name)


@dataclass(frozen=True)
class _Remat:
    """Wraps the function of a unit in `jax.checkpoint` that keeps `kept`."""

    kept: tuple[str, ...]

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        policy = jax.checkpoint_policies.save_only_these_names(*self.kept)
        return jax.checkpoint(function, policy=policy)  # pyright: ignore[reportPrivateImportUsage]


def with_remat(execution: Execution, policy: Policy) -> Execution:
    """`execution` that recomputes in the backward pass what `policy` does not keep."""
    if policy == "none":
        return execution
    return replace(
        execution,
        remat=_Remat(KEPT[policy]),
        matmul=_Named(execution.matmul),
        grouped_matmul=_Named(execution.grouped_matmul),
        attention=_Named(execution.attention, MIXED),
    )
