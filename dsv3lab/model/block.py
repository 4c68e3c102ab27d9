"""One transformer block, and stacks of equal units of blocks."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dsv3lab.config import ModelConfig
from dsv3lab.model.attention import MLA
from dsv3lab.model.execution import Execution
from dsv3lab.model.experts import MoE
from dsv3lab.model.layers import RMSNorm, SwiGLU, dropout
from dsv3lab.model.routing import Auxiliary


class Context(eqx.Module):
    """What every block of one forward pass shares: rotary angles, segments, and which tokens count."""

    cos: Float[Array, "#batch seq half"]
    sin: Float[Array, "#batch seq half"]
    segments: Int[Array, "batch seq"] | None
    valid: Bool[Array, "batch seq"] | None


class Routed(eqx.Module):
    """Routing statistics of MoE layers, one row each."""

    loads: Int[Array, "layers experts"]
    balance: Float[Array, " layers"]
    auxiliary: Auxiliary


class Block(eqx.Module):
    """Pre-norm residual block: attention, then a dense SwiGLU or experts."""

    attention_norm: RMSNorm
    attention: MLA
    ffn_norm: RMSNorm
    ffn: SwiGLU | MoE

    @staticmethod
    def init(config: ModelConfig, *, moe: bool, key: PRNGKeyArray) -> "Block":
        """A block with experts (`moe`) or with the dense SwiGLU."""
        key_attention, key_ffn = jax.random.split(key)
        return Block(
            attention_norm=RMSNorm.init(config.hidden_size, eps=config.rms_norm_eps),
            attention=MLA.init(config, key=key_attention),
            ffn_norm=RMSNorm.init(config.hidden_size, eps=config.rms_norm_eps),
            ffn=MoE.init(config, key=key_ffn)
            if moe
            else SwiGLU.init(config, inner=config.intermediate_size, key=key_ffn),
        )

    def __call__(
        self,
        h: Float[Array, "batch seq width"],
        context: Context,
        *,
        key: PRNGKeyArray | None,
        capture: frozenset[str],
        execution: Execution,
    ) -> tuple[Float[Array, "batch seq width"], Routed | None, dict[str, Array]]:
        """The new residual stream, the routing statistics (None: dense) and the captured intermediates by local name.

        `key` is that of the block's dropouts; `None`: nothing is dropped.
        """
        captured: dict[str, Array] = {}
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        angles = {"cos": context.cos, "sin": context.sin}
        x = execution.gather_seq(self.attention_norm(h))
        mixed = self.attention(x, **angles, segments=context.segments, key=keys[0], execution=execution)
        mixed = execution.scatter_seq(execution.sum_tp(mixed))
        h = h + dropout(mixed, rate=execution.residual_dropout, key=keys[1])
        x = execution.gather_seq(self.ffn_norm(h))
        routed = None
        if isinstance(self.ffn, MoE):
            out, report = self.ffn(x, valid=context.valid, execution=execution)
            auxiliary = jax.tree.map(lambda a: a[None], report.auxiliary)
            routed = Routed(report.loads[None], report.balance[None], auxiliary)
            captured = {"router.scores": report.scores, "router.ids": report.ids, "router.gates": report.gates}
        else:
            out = self.ffn(x, execution=execution)
        h = h + dropout(execution.scatter_seq(execution.sum_tp(out)), rate=execution.residual_dropout, key=keys[2])
        captured |= {"attention": mixed, "hidden": h}
        return h, routed, {name: value for name, value in captured.items() if name in capture}


def local_names(block: Block) -> tuple[str, ...]:
    """The names that can be captured inside `block`."""
    names = ("hidden", "attention")
    return (*names, "router.scores", "router.ids", "router.gates") if isinstance(block.ffn, MoE) else names


class Stack(eqx.Module):
    """A unit of blocks repeated: every array of `unit` has a leading axis of repeats.

    V3 is a stack of 3 dense units and one of 58 MoE units.
    """

    unit: tuple[Block, ...]

    @staticmethod
    def init(config: ModelConfig, *, moe: tuple[bool, ...], repeats: int, key: PRNGKeyArray) -> "Stack":
        """`repeats` units, each with a block for every entry of `moe`."""

        def one(key: PRNGKeyArray) -> tuple[Block, ...]:
            keys = jax.random.split(key, len(moe))
            return tuple(Block.init(config, moe=kind, key=k) for kind, k in zip(moe, keys, strict=True))

        return Stack(unit=eqx.filter_vmap(one)(jax.random.split(key, repeats)))

    @property
    def repeats(self) -> int:
        """How often the unit stands here."""
        return self.unit[0].attention_norm.weight.shape[0]

    def __call__(
        self,
        h: Float[Array, "batch seq width"],
        context: Context,
        *,
        first_layer: int,
        key: PRNGKeyArray | None,
        capture: frozenset[str],
        execution: Execution,
    ) -> tuple[Float[Array, "batch seq width"], Routed | None, dict[str, Array]]:
        """Run all units; captured names are `layers.{i}.{local name}`, and asking for one unrolls the scan."""
        size = len(self.unit)
        prefixes = {f"layers.{first_layer + i}." for i in range(self.repeats * size)}
        keys = None if key is None else jax.random.split(key, self.repeats)
        unroll = not execution.scan or any(name.startswith(tuple(prefixes)) for name in capture)

        def run(
            h: Array, unit: tuple[Block, ...], key: PRNGKeyArray | None, wanted: tuple[frozenset[str], ...]
        ) -> tuple[Array, Routed | None, list[dict[str, Array]]]:
            unit = execution.gather_params(unit)
            keys = (None,) * size if key is None else tuple(jax.random.split(key, size))
            routed, captured = [], []
            for block, names, own in zip(unit, wanted, keys, strict=True):
                h, one, taken = block(h, context, key=own, capture=names, execution=execution)
                routed += [] if one is None else [one]
                captured.append(taken)
            return h, _concatenate(routed), captured

        if not unroll:
            body = execution.remat(lambda h, unit, key: run(h, unit, key, (frozenset(),) * size)[:2])
            h, routed = jax.lax.scan(lambda h, xs: body(h, *xs), h, (self.unit, keys))
            return h, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), routed), {}

        statistics, everything = [], {}
        for repeat in range(self.repeats):
            unit = jax.tree.map(lambda a, r=repeat: a[r], self.unit)
            names = [f"layers.{first_layer + repeat * size + i}." for i in range(size)]
            wanted = tuple(frozenset(c.removeprefix(n) for c in capture if c.startswith(n)) for n in names)
            own = None if keys is None else keys[repeat]
            h, routed, captured = execution.remat(lambda h, unit, key, w=wanted: run(h, unit, key, w))(h, unit, own)
            statistics += [] if routed is None else [routed]
            for prefix, taken in zip(names, captured, strict=True):
                everything |= {prefix + name: value for name, value in taken.items()}
        return h, _concatenate(statistics), everything


def _concatenate(parts: list[Routed]) -> Routed | None:
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts) if parts else None
