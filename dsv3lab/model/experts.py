"""DeepSeekMoE: routed experts, none dropped, beside one shared SwiGLU (DeepSeek-V3 report 2.1.2, Eq. 12)."""

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dsv3lab.config import ModelConfig
from dsv3lab.model.execution import Execution
from dsv3lab.model.layers import SwiGLU, normal, swiglu
from dsv3lab.model.routing import Auxiliary, Router, auxiliary_losses, balance_loss, expert_loads


class Experts(eqx.Module):
    """The routed SwiGLUs, stacked along the expert axis."""

    gate_up: Float[Array, "*stack experts width 2 inner"]
    down: Float[Array, "*stack experts inner width"]

    @staticmethod
    def init(config: ModelConfig, *, key: PRNGKeyArray) -> "Experts":
        """All routed experts of one layer."""
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        std, (key_in, key_out) = config.initializer_range, jax.random.split(key)
        return Experts(
            gate_up=normal(key_in, (experts, width, 2, inner), std=std),
            down=normal(key_out, (experts, inner, width), std=std),
        )

    def __call__(
        self,
        rows: Float[Array, "rows width"],
        row_gates: Float[Array, " rows"],
        group_sizes: Int[Array, " experts"],
        *,
        execution: Execution,
    ) -> Float[Array, "rows width"]:
        """Each row through its expert, times its gate; the gate goes in before the last product, where rows are narrow."""
        gate_up = self.gate_up.reshape(*self.gate_up.shape[:2], -1)
        hidden = swiglu(execution.grouped_matmul(rows, gate_up, group_sizes, place="experts.gate_up"))
        hidden = hidden * row_gates[:, None].astype(hidden.dtype)
        return execution.grouped_matmul(hidden, self.down, group_sizes, place="experts.down")


class RouterReport(eqx.Module):
    """What one MoE layer says beside its output."""

    loads: Int[Array, " experts"]
    balance: Float[Array, ""]
    auxiliary: Auxiliary
    scores: Float[Array, "tokens experts"]
    ids: Int[Array, "tokens top"]
    gates: Float[Array, "tokens top"]


class MoE(eqx.Module):
    """`shared(x) + sum over chosen experts of gate_i expert_i(x)`."""

    router: Router
    experts: Experts
    shared: SwiGLU | None

    @staticmethod
    def init(config: ModelConfig, *, key: PRNGKeyArray) -> "MoE":
        """Router, routed experts and, if there are any, the shared experts as one SwiGLU."""
        keys = jax.random.split(key, 3)
        shared_inner = config.n_shared_experts * config.moe_intermediate_size
        return MoE(
            router=Router.init(config, key=keys[0]),
            experts=Experts.init(config, key=keys[1]),
            shared=SwiGLU.init(config, inner=shared_inner, key=keys[2]) if shared_inner else None,
        )

    def __call__(
        self,
        x: Float[Array, "batch seq width"],
        *,
        valid: Bool[Array, "batch seq"] | None,
        execution: Execution,
    ) -> tuple[Float[Array, "batch seq width"], RouterReport]:
        """The layer's output for a normed input, and the routing statistics of the valid tokens."""
        batch, seq, width = x.shape
        tokens = x.reshape(-1, width)
        num_experts = self.router.weight.shape[-1]
        scores = self.router.scores(tokens)
        ids, gates = self.router(scores)

        def expert_fn(rows: Array, row_gates: Array, group_sizes: Array) -> Array:
            return self.experts(rows, row_gates, group_sizes, execution=execution)

        out = execution.exchange(expert_fn, tokens, ids, gates, num_experts=num_experts).reshape(x.shape)
        if self.shared is not None:
            out = out + self.shared(x, execution=execution)
        report = RouterReport(
            loads=expert_loads(ids, None if valid is None else valid.reshape(-1), num_experts=num_experts),
            balance=balance_loss(scores.reshape(batch, seq, -1), valid, top=self.router.top),
            auxiliary=auxiliary_losses(
                scores.reshape(batch, seq, -1),
                ids.reshape(batch, seq, -1),
                valid,
                groups=self.router.groups,
                top_groups=self.router.top_groups,
            ),
            scores=scores,
            ids=ids,
            gates=gates,
        )
        return out, report
