"""The whole model: embedding, stacks of blocks, head, and the MTP modules beside them."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dsv3lab.config import ModelConfig, YarnConfig, nearest, repeating_units
from dsv3lab.model.block import Context, Routed, Stack, local_names
from dsv3lab.model.execution import LOCAL, Execution
from dsv3lab.model.experts import MoE
from dsv3lab.model.layers import RMSNorm, normal
from dsv3lab.model.mtp import MTP, ahead
from dsv3lab.model.rope import rotary_angles
from dsv3lab.model.routing import Auxiliary


class Output(eqx.Module):
    """What a forward pass returns.

    Attributes:
        hidden: after the final norm; `unembed` makes logits of it.
        mtp: hidden states of depth 1..D, after each module's norm; empty unless asked for.
        loads: tokens per expert of each MoE layer, main layers first, then one row for each MTP module that ran;
            int32, counted on this device only.
        balance: mean over sequences of the sum over those layers of sum_i f_i P_i, without alpha.
        auxiliary: the balance losses of other papers, summed over those layers.
        captured: the intermediates that were asked for.
    """

    hidden: Float[Array, "batch seq width"]
    mtp: tuple[Float[Array, "batch seq width"], ...]
    loads: Int[Array, "layers experts"]
    balance: Float[Array, ""]
    auxiliary: Auxiliary
    captured: dict[str, Array]


class DeepSeek(eqx.Module):
    """DeepSeek-V3: weights are [in, out], head and embedding are two arrays."""

    embedding: Float[Array, "vocab width"]
    stacks: tuple[Stack, ...]
    norm: RMSNorm
    head: Float[Array, "width vocab"] | None
    """`None`: the embedding, transposed."""
    mtp: tuple[MTP, ...]
    experts: int = eqx.field(static=True)
    rope_width: int = eqx.field(static=True)
    rope_theta: float = eqx.field(static=True)
    yarn: YarnConfig | None = eqx.field(static=True)

    @staticmethod
    def init(config: ModelConfig, *, key: PRNGKeyArray) -> "DeepSeek":
        """A new model in float32; under `eqx.filter_eval_shape` the same path gives shapes only."""
        keys = jax.random.split(key, 4 + config.num_nextn_predict_layers)
        std = config.initializer_range
        stacks = (
            Stack.init(config, moe=unit, repeats=repeats, key=jax.random.fold_in(keys[1], number))
            for number, (unit, repeats) in enumerate(repeating_units(config.moe_layers))
        )
        return DeepSeek(
            embedding=normal(keys[0], (config.vocab_size, config.hidden_size), std=config.embedding_initializer_range),
            stacks=tuple(stacks),
            norm=RMSNorm.init(config.hidden_size, eps=config.rms_norm_eps),
            head=None
            if config.tie_word_embeddings
            else normal(keys[3], (config.hidden_size, config.vocab_size), std=std),
            mtp=tuple(MTP.init(config, key=k) for k in keys[4:]),
            experts=config.n_routed_experts,
            rope_width=config.qk_rope_head_dim,
            rope_theta=config.rope_theta,
            yarn=config.rope_scaling,
        )

    def forward(
        self,
        tokens: Int[Array, "batch seq"],
        *,
        positions: Int[Array, "#batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        mtp: bool = False,
        key: PRNGKeyArray | None = None,
        capture: frozenset[str] = frozenset(),
        execution: Execution = LOCAL,
    ) -> Output:
        """Hidden states and routing statistics of a batch.

        Args:
            tokens: token ids.
            positions: rotary position of each token; None: 0, 1, ... along the sequence.
            segments: document of each token: attention stays within one, and MTP does not look over its end.
            mtp: whether the MTP modules run.
            key: of the dropouts that `execution` asks for, in training only; None: nothing is dropped.
            capture: names of intermediates to return, of `capture_names()`.
            execution: how the mathematics is carried out.

        Raises:
            ValueError: for an unknown name in `capture`, or for MTP on a sequence not longer than its depth.
        """
        self._check(capture, seq=tokens.shape[1], mtp=mtp)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        cos, sin = rotary_angles(positions, width=self.rope_width, theta=self.rope_theta, yarn=self.yarn)
        context = Context(cos=cos, sin=sin, segments=segments, valid=None)

        parts = len(self.stacks) + len(self.mtp)
        keys = [None] * parts if key is None else list(jax.random.split(key, parts))
        embedded = self.embedding[tokens].astype(execution.activations)
        h, routed, captured, first_layer = embedded, [], {"embedding": embedded}, 0
        for stack, own in zip(self.stacks, keys, strict=False):
            shared: dict[str, Any] = {"capture": capture, "execution": execution}
            h, one, taken = stack(h, context, first_layer=first_layer, key=own, **shared)
            routed += [] if one is None else [one]
            captured |= taken
            first_layer += stack.repeats * len(stack.unit)
        hidden = self.norm(h)

        depths, previous = [], hidden
        for depth, module in enumerate(self.mtp if mtp else (), start=1):
            shifted, valid = ahead(embedded, self.embedding[0].astype(embedded.dtype), segments, depth=depth)
            names = frozenset(c.removeprefix(f"mtp.{depth}.") for c in capture if c.startswith(f"mtp.{depth}."))
            context = Context(cos=cos, sin=sin, segments=segments, valid=valid)
            options: dict[str, Any] = {"key": keys[-depth], "capture": names, "execution": execution}
            previous, one, taken = module(previous, shifted, context, **options)
            routed += [] if one is None else [one]
            captured |= {f"mtp.{depth}.{name}": value for name, value in taken.items()}
            depths.append(previous)

        nothing = jnp.zeros(0, jnp.float32)
        none = Routed(jnp.zeros((0, self.experts), jnp.int32), nothing, Auxiliary(nothing, nothing, nothing, nothing))
        total = jax.tree.map(lambda *a: jnp.concatenate(a), none, *routed)
        return Output(
            hidden=hidden,
            mtp=tuple(depths),
            loads=total.loads,
            balance=jnp.sum(total.balance),
            auxiliary=jax.tree.map(jnp.sum, total.auxiliary),
            captured={name: value for name, value in captured.items() if name in capture},
        )

    def unembed(self, hidden: Float[Array, "... width"], *, execution: Execution = LOCAL) -> Float[Array, "... vocab"]:
        """Logits of normed hidden states, of the main model or of an MTP depth."""
        return execution.matmul(hidden, self.output_matrix, place="head")

    @property
    def output_matrix(self) -> Float[Array, "width vocab"]:
        """What hidden states are multiplied with to make logits: the head, or the embedding if they are tied."""
        return self.embedding.T if self.head is None else self.head

    def __call__(self, tokens: Int[Array, "batch seq"]) -> Float[Array, "batch seq vocab"]:
        """Logits of the next token at every position."""
        return self.unembed(self.forward(tokens).hidden)

    def bias(self) -> Float[Array, "layers experts"]:
        """The router bias of every MoE layer, in the order of `Output.loads` with MTP; no rows if routers have none."""
        rows = [leaf.reshape(-1, self.experts) for leaf in _biases(self)]
        return jnp.concatenate(rows) if rows else jnp.zeros((0, self.experts), jnp.float32)

    def with_bias(self, bias: Float[Array, "layers experts"]) -> "DeepSeek":
        """The same model with other router biases, in the order of `bias()`.

        Raises:
            ValueError: if the number of rows is not that of the MoE layers.
        """
        leaves, row, new = _biases(self), 0, []
        rows = sum(leaf.size // self.experts for leaf in leaves)
        if bias.shape != (rows, self.experts):
            raise ValueError(f"with_bias: expected {(rows, self.experts)} (MoE layers, experts), got {bias.shape}")
        for leaf in leaves:
            count = leaf.size // self.experts
            new.append(bias[row : row + count].reshape(leaf.shape).astype(leaf.dtype))
            row += count
        return eqx.tree_at(_biases, self, new) if leaves else self

    def capture_names(self) -> tuple[str, ...]:
        """Every name that `forward(capture=...)` knows; those of MTP need `mtp=True`."""
        names, layer = ["embedding"], 0
        for stack in self.stacks:
            for _ in range(stack.repeats):
                for block in stack.unit:
                    names += [f"layers.{layer}.{name}" for name in local_names(block)]
                    layer += 1
        for depth, module in enumerate(self.mtp, start=1):
            names += [f"mtp.{depth}.{name}" for name in local_names(module.block)]
        return tuple(names)

    def _check(self, capture: frozenset[str], *, seq: int, mtp: bool) -> None:
        known = [name for name in self.capture_names() if mtp or not name.startswith("mtp.")] if capture else []
        for name in sorted(capture):
            if name not in known:
                raise ValueError(f"capture: unknown name '{name}'{nearest(name, known)}")
        if mtp and seq <= len(self.mtp):
            raise ValueError(f"forward: MTP of depth {len(self.mtp)} needs more than {len(self.mtp)} tokens, got {seq}")


def _biases(model: DeepSeek) -> list[Any]:
    modules = model.mtp if isinstance(model.mtp, tuple) else ()  # eqx.tree_at puts a leaf in place of an empty tuple
    blocks = [block for stack in model.stacks for block in stack.unit] + [module.block for module in modules]
    return [
        block.ffn.router.bias for block in blocks if isinstance(block.ffn, MoE) and block.ffn.router.bias is not None
    ]


def init(config: ModelConfig, *, key: PRNGKeyArray, sharding: Any = None) -> DeepSeek:
    """A new model, computed in one program; `sharding` (one for all arrays or a tree of them) places it as it is made."""
    if sharding is None and not isinstance(key, Tracer):
        return _initialiser(config)(key)
    options: dict[str, Any] = {} if sharding is None else {"out_shardings": sharding}
    if not isinstance(key, Tracer):  # compiler options have no place inside a trace
        options |= _draw_quickly()
    return jax.jit(lambda key: DeepSeek.init(config, key=key), **options)(key)


@ft.lru_cache(maxsize=16)
def _initialiser(config: ModelConfig) -> Any:
    """Key -> a new model, compiled once for all keys."""
    return jax.jit(lambda key: DeepSeek.init(config, key=key), **_draw_quickly())


def _draw_quickly() -> dict[str, Any]:
    """Options for thirty random draws of different shapes: optimising them takes three times as long as all else."""
    if jax.default_backend() != "cpu":
        return {}
    return {"compiler_options": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}}


def abstract(config: ModelConfig) -> DeepSeek:
    """The same tree with shapes and dtypes in place of arrays: the 671B model fits anywhere."""
    return eqx.filter_eval_shape(lambda key: DeepSeek.init(config, key=key), jax.random.key(0))


def trainable(model: DeepSeek) -> Any:
    """A tree of bool of the same structure: False for the router biases, which are updated by counts."""
    every = jax.tree.map(lambda _: True, model)
    biases = _biases(model)
    return eqx.tree_at(_biases, every, [False] * len(biases)) if biases else every
