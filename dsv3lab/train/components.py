"""The parts of the model one by one, each beside its reference: what the roofline of phase 1 measures.

A part is a function of what a gradient is taken of (parameters and inputs) and of the rest (token ids, targets, angles).
Its work is known before it runs: the products that its mathematics asks for, and the bytes that it must move at least.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from dsv3lab.config import ModelConfig, OptimizerConfig, TrainConfig
from dsv3lab.model import COUNTABLE, LOCAL, DeepSeek, Execution, MoE, Router, SwiGLU, abstract, attend
from dsv3lab.model.block import Block, Context
from dsv3lab.model.rope import rotary_angles, rotate
from dsv3lab.plan import flops_by_part
from dsv3lab.train import losses, optimizer
from dsv3lab.train.step import split

Run = Callable[[Any, Any], Any]
"""`(variables, constants) -> outputs`, all of them trees of arrays."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the model with its arguments.

    name: for people.
    run: as the model runs it.
    reference: the same result, written plainly.
    against: what the reference is.
    variables: floating-point arguments, parameters included; gradients are taken of all of them.
    constants: the other arguments.
    flops: of the products of one forward pass, in the convention of `plan.flops_per_token`, causal.
    unread: bytes of `variables` that need not be read: rows of the embedding that no token asks for.
    differentiated: whether the part has a backward pass.
    sorts: whether it is sorting that takes its time, which neither products nor bytes count.
    """

    name: str
    run: Run
    reference: Run
    against: str
    variables: Any
    constants: Any
    flops: int
    unread: int = 0
    differentiated: bool = True
    sorts: bool = False


@dataclass(frozen=True)
class Shape:
    """How much the parts work on.

    batch, sequence: of the parts with products, and of the loss.
    stream: tokens of the parts without products, enough to leave a core's own caches; the embedding, whose reference has a
        product with every row of its table, gets an eighth of them.
    dtype: of the activations; parameters are float32.
    """

    batch: int
    sequence: int
    stream: int
    dtype: DTypeLike = jnp.float32

    @property
    def tokens(self) -> int:
        """Tokens of the parts with products."""
        return self.batch * self.sequence


def parts(config: ModelConfig, train: TrainConfig, shape: Shape, *, seed: int = 0) -> tuple[Part, ...]:
    """The parts that a model of `config` has, with its own freshly drawn parameters and random inputs."""
    rng = np.random.default_rng(seed)
    model = _drawn(config, rng)
    flops = {
        name: shape.tokens * work
        for name, work in flops_by_part(config, sequence_length=shape.sequence, causal=True).items()
    }
    found = (
        *_of_layers(model, config, shape, flops=flops, rng=rng),
        *_without_products(model, config, shape, rng=rng),
        _head(model, train, shape, flops=flops["head"], rng=rng),
        *_mtp(model, config, shape, flops=flops["mtp"], rng=rng),
        _optimizer(model, train, shape, rng=rng),
    )
    return tuple(
        replace(
            part,
            variables=jax.tree.map(jnp.asarray, part.variables),
            constants=jax.tree.map(jnp.asarray, part.constants),
        )
        for part in found
    )


def _drawn(config: ModelConfig, rng: np.random.Generator) -> DeepSeek:
    """A model whose weights NumPy draws: `init` takes longer to compile than everything else here."""

    def fill(path: Any, leaf: Any) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name.endswith("norm.weight"):
            return jnp.asarray(np.ones(leaf.shape, np.float32))
        if name.endswith("bias"):
            return jnp.asarray(np.zeros(leaf.shape, np.float32))
        return jnp.asarray(np.float32(config.initializer_range) * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree_util.tree_map_with_path(fill, abstract(config))


def _normal(rng: np.random.Generator, *shape: int, dtype: DTypeLike = jnp.float32) -> Any:
    return rng.standard_normal(shape, np.float32).astype(dtype)


def _first_block(model: DeepSeek, kind: type) -> Block | None:
    """The first layer of the model whose second half is of that kind."""
    blocks = [block for stack in model.stacks for block in stack.unit if isinstance(block.ffn, kind)]
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], blocks[0]) if blocks else None


def _of_layers(
    model: DeepSeek, config: ModelConfig, shape: Shape, *, flops: dict[str, int], rng: np.random.Generator
) -> list[Part]:
    dense, moe = _first_block(model, SwiGLU), _first_block(model, MoE)
    x = _normal(rng, shape.batch, shape.sequence, config.hidden_size, dtype=shape.dtype)
    found = []
    if (block := dense or moe) is not None:

        def attention(execution: Execution) -> Run:
            return lambda variables, _: attend(variables[0], variables[1], config, execution=execution)

        same = {"variables": (block.attention, x), "constants": ()}
        one, two = attention(LOCAL), attention(COUNTABLE)
        found.append(
            Part(name="MLA", run=one, reference=two, against="whole square of scores", flops=flops["attention"], **same)
        )
    if dense is not None:
        found.append(
            Part(
                name="dense SwiGLU",
                run=lambda variables, _: variables[0](variables[1], execution=LOCAL),
                reference=_swiglu,
                against="three products over unflattened axes",
                variables=(dense.ffn, x),
                constants=(),
                flops=flops["dense_ffn"],
            )
        )
    if moe is not None and isinstance(moe.ffn, MoE):

        def experts(execution: Execution) -> Run:
            return lambda variables, _: variables[0](variables[1], valid=None, execution=execution)[0]

        found.append(
            Part(
                name="expert layer",
                run=experts(LOCAL),
                reference=experts(COUNTABLE),
                against="jax.lax.ragged_dot",
                variables=(moe.ffn, x),
                constants=(),
                flops=flops["experts"] + flops["router"],
            )
        )
        found.append(
            Part(
                name="router",
                run=lambda variables, _: variables[0](variables[0].scores(variables[1])),
                reference=_router,
                against="full sorts and gathers",
                variables=(moe.ffn.router, x.reshape(shape.tokens, -1)),
                constants=(),
                flops=flops["router"],
                sorts=True,
            )
        )
    return found


def _without_products(model: DeepSeek, config: ModelConfig, shape: Shape, *, rng: np.random.Generator) -> list[Part]:
    rows = -(-shape.stream // shape.sequence)
    angles = _angles(config, shape)
    queries = (rows, shape.sequence, config.num_attention_heads, config.qk_rope_head_dim)
    tokens = rng.integers(config.vocab_size, size=max(shape.tokens, shape.stream // 8))
    unread = config.vocab_size - len(np.unique(tokens))
    return [
        Part(
            name="RMSNorm",
            run=lambda variables, _: variables[0](variables[1]),
            reference=_rms_norm,
            against="the equation, line by line",
            variables=(model.norm, _normal(rng, rows, shape.sequence, config.hidden_size, dtype=shape.dtype)),
            constants=(),
            flops=0,
        ),
        Part(
            name="RoPE",
            run=lambda x, angles: rotate(x, cos=angles[0], sin=angles[1]),
            reference=_rope,
            against="product of complex numbers",
            variables=_normal(rng, *queries, dtype=shape.dtype),
            constants=angles,
            flops=0,
        ),
        Part(
            name="embedding",
            run=lambda table, tokens: table[tokens].astype(shape.dtype),
            reference=lambda table, tokens: (jax.nn.one_hot(tokens, table.shape[0]) @ table).astype(shape.dtype),
            against="product with one-hot rows",
            variables=model.embedding,
            constants=tokens.astype(np.int32),
            flops=0,
            unread=unread * config.hidden_size * model.embedding.itemsize,
        ),
    ]


def _head(model: DeepSeek, train: TrainConfig, shape: Shape, *, flops: int, rng: np.random.Generator) -> Part:
    width, vocab = model.output_matrix.shape
    targets = rng.integers(vocab, size=shape.tokens).astype(np.int32)
    weights = np.full(shape.tokens, 1 / shape.tokens, np.float32)
    return Part(
        name="head and loss",
        run=lambda v, c: losses.vocabulary_loss(*v, *c, chunk=train.loss.vocab_chunk),
        reference=_loss,
        against="whole logits",
        variables=(_normal(rng, shape.tokens, width, dtype=shape.dtype), model.output_matrix),
        constants=(targets, weights),
        flops=flops,
    )


def _mtp(model: DeepSeek, config: ModelConfig, shape: Shape, *, flops: int, rng: np.random.Generator) -> list[Part]:
    inputs = (shape.batch, shape.sequence, config.hidden_size)

    def module(execution: Execution) -> Run:
        options: Any = {"key": None, "capture": frozenset(), "execution": execution}
        return lambda v, c: v[0](v[1], v[2], Context(cos=c[0], sin=c[1], segments=None, valid=None), **options)[0]

    return [
        Part(
            name="MTP module",
            run=module(LOCAL),
            reference=module(COUNTABLE),
            against="whole scores and ragged_dot",
            variables=(one, *(_normal(rng, *inputs, dtype=shape.dtype) for _ in range(2))),
            constants=_angles(config, shape),
            flops=flops,
        )
        for one in model.mtp[:1]
    ]


def _optimizer(model: DeepSeek, train: TrainConfig, shape: Shape, *, rng: np.random.Generator) -> Part:
    """A quarter of the way through training, with moments that earlier steps may have left."""
    params, _ = split(model)
    transformation: Any = optimizer.make(train, shape.sequence)
    state, count = jax.eval_shape(transformation.init, params), np.int32(train.steps(shape.sequence) // 4)
    moments = state[1]._replace(
        count=count,
        mu=jax.tree.map(lambda leaf: _normal(rng, *leaf.shape, dtype=leaf.dtype), state[1].mu),
        nu=jax.tree.map(lambda leaf: np.square(_normal(rng, *leaf.shape)).astype(leaf.dtype), state[1].nu),
    )
    state = (state[0], moments, state[2], state[3]._replace(count=count))
    gradient = jax.tree.map(lambda leaf: _normal(rng, *leaf.shape), params)

    def run(variables: Any, state: Any) -> Any:
        params, gradient = variables
        updates, state = transformation.update(gradient, state, params)
        return eqx.apply_updates(params, updates), state[1].mu, state[1].nu

    def reference(variables: Any, state: Any) -> Any:
        rate = optimizer.schedule(train, shape.sequence)(state[3].count)
        return _adamw(variables[0], variables[1], state[1], options=train.optimizer, rate=rate)

    return Part(
        name="optimizer",
        run=run,
        reference=reference,
        against="AdamW's equations, leaf by leaf",
        variables=(params, gradient),
        constants=state,
        flops=0,
        differentiated=False,
    )


def _angles(config: ModelConfig, shape: Shape) -> tuple[Array, Array]:
    positions = jnp.arange(shape.sequence)[None]
    return rotary_angles(positions, width=config.qk_rope_head_dim, theta=config.rope_theta, yarn=config.rope_scaling)


def _swiglu(variables: tuple[SwiGLU, Array], _: Any) -> Array:
    layer, x = variables
    gate, up = (jnp.einsum("bsd,di->bsi", x, layer.gate_up[:, half].astype(x.dtype)) for half in (0, 1))
    return jnp.einsum("bsi,id->bsd", jax.nn.silu(gate) * up, layer.down.astype(x.dtype))


def _router(variables: tuple[Router, Array], _: Any) -> tuple[Array, Array]:
    router, x = variables
    scores = router.scores(x)
    biased = jax.lax.stop_gradient(scores if router.bias is None else scores + router.bias)
    rows = jnp.arange(x.shape[0])[:, None]
    if router.top_groups < router.groups:
        grouped = biased.reshape(x.shape[0], router.groups, -1)
        best = jnp.sum(jnp.sort(grouped, axis=-1)[..., -router.group_best :], axis=-1)
        chosen = jnp.argsort(-best, axis=-1)[:, : router.top_groups]
        reachable = jnp.zeros(best.shape, bool).at[rows, chosen].set(True)
        biased = jnp.where(reachable[..., None], grouped, -jnp.inf).reshape(biased.shape)
    ids = jnp.argsort(-biased, axis=-1)[:, : router.top]
    gates = jnp.take_along_axis(scores, ids, axis=-1)
    if router.normalise:
        gates = gates / (jnp.sum(gates, axis=-1, keepdims=True) + 1e-20)
    return ids.astype(jnp.int32), gates * router.scale


def _rms_norm(variables: Any, _: Any) -> Array:
    norm, x = variables
    x32 = x.astype(jnp.float32)
    return (x32 / jnp.sqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + norm.eps) * norm.weight).astype(x.dtype)


def _rope(x: Array, angles: tuple[Array, Array]) -> Array:
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    turn = jax.lax.complex(*angles)[:, :, None]
    turned = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * turn
    return jnp.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).astype(x.dtype)


def _loss(variables: tuple[Array, Array], constants: tuple[Array, Array]) -> Array:
    (hidden, head), (targets, weights) = variables, constants
    logits = jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), targets[:, None], axis=-1)[:, 0]
    return -jnp.sum(weights * likelihood)


def _adamw(params: Any, gradient: Any, moments: Any, *, options: OptimizerConfig, rate: Array) -> Any:
    """Clipping by the global norm, then Loshchilov and Hutter's Algorithm 2 (arXiv:1711.05101)."""
    norm = jnp.sqrt(sum((jnp.sum(g**2) for g in jax.tree.leaves(gradient)), jnp.zeros(())))
    step = moments.count + 1

    def one(p: Array, g: Array, mu: Array, nu: Array, decays: bool) -> tuple[Array, Array, Array]:
        g = g * jnp.minimum(1.0, options.clip_norm / norm)
        m = options.b1 * mu.astype(jnp.float32) + (1 - options.b1) * g
        v = options.b2 * nu.astype(jnp.float32) + (1 - options.b2) * g**2
        update = m / (1 - options.b1**step) / (jnp.sqrt(v / (1 - options.b2**step)) + options.eps)
        update = update + options.weight_decay * p if decays else update
        return p - rate * update, m.astype(mu.dtype), v.astype(nu.dtype)

    mask = optimizer.decay_mask(params)
    leaves = jax.tree.map(one, params, gradient, moments.mu, moments.nu, mask)
    return jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0, 0)), leaves)
