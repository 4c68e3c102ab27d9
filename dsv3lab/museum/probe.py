"""What a mistake changes: the same weights and tokens through the right code and through the wrong one."""

import functools as ft
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsv3lab.config import ModelConfig, TrainConfig
from dsv3lab.model import DeepSeek, abstract
from dsv3lab.museum.patched import Patched, load, load_switched
from dsv3lab.museum.table import Mistake

FORWARD = ("logits", "MTP logits", "loads", "balance loss", "objective")
PRODUCTS = ("FP8 product", "FP8 gradients", "FP8 cast")
QUANTITIES = (*FORWARD, *PRODUCTS, "router bias")
"""What `look` sees."""
STEPS = 5
"""Optimizer steps after which the router bias is compared."""


@dataclass(frozen=True)
class Specimen:
    """What every mistake is put into.

    config: the model's shape.
    model: its weights, norms away from one and router biases far below zero, so that nothing hides.
    windows: tokens [batch, seq + 1].
    train: weights of the objective, and the optimizer.
    """

    config: ModelConfig
    model: DeepSeek
    windows: np.ndarray
    train: TrainConfig

    @property
    def at_peak(self) -> TrainConfig:
        """The training at the peak learning rate from its first step."""
        peak = self.train.schedule.peak_lr
        return replace(self.train, schedule=replace(self.train.schedule, final_lr=peak, tail_lr=peak, warmup=0.0))

    @staticmethod
    def draw(config: ModelConfig, train: TrainConfig, *, batch: int, sequence_length: int) -> "Specimen":
        """Weights and tokens at random."""
        rng = np.random.default_rng(train.seed)

        def fill(path: Any, leaf: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if name.endswith("norm.weight"):
                values = rng.uniform(0.5, 1.5, leaf.shape)
            elif name.endswith("router.bias"):
                values = rng.normal(-1.0, 0.1, leaf.shape)
            else:
                std = config.embedding_initializer_range if name == "embedding" else config.initializer_range
                values = rng.normal(scale=std, size=leaf.shape)
            return jnp.asarray(values, leaf.dtype)

        model = jax.tree_util.tree_map_with_path(fill, abstract(config))
        windows = rng.integers(0, config.vocab_size, (batch, sequence_length + 1)).astype(np.int32)
        return Specimen(config, model, windows, train)


def look(copy: Patched, specimen: Specimen) -> dict[str, np.ndarray]:
    """`QUANTITIES` as the copy computes them: with a mistake, those of the place where it shows; without one, all.

    Nothing is compiled as a whole: the single operations are the same for every copy, so only the first call compiles.
    """
    probes = {"forward": _forward, "fp8": _fp8, "step": _step}
    wanted = list(probes) if copy.mistake is None else [copy.mistake.probe]
    seen: dict[str, Any] = {}
    for name in wanted:
        seen |= probes[name](copy, specimen)
    return {name: np.asarray(value, np.float64) for name, value in seen.items()}


def look_at_all(
    mistakes: Sequence[Mistake], specimen: Specimen
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """What `look` sees of the right code, and of each of `mistakes` by its name.

    The forward pass is compiled once for all mistakes that an argument can choose.
    """
    chosen = [mistake for mistake in mistakes if mistake.is_argument and mistake.probe == "forward"]
    copy = load_switched(chosen)

    def run(number: Any, model: DeepSeek) -> dict[str, Any]:
        with copy.set_to(number):
            return _forward(copy, replace(specimen, model=model))

    compiled = jax.jit(run, **quick_options())
    passes = [compiled(jnp.int32(number), specimen.model) for number in range(-1, len(chosen))]
    first, *others = [{name: np.asarray(value, np.float64) for name, value in seen.items()} for seen in passes]
    seen = {mistake.name: one for mistake, one in zip(chosen, others, strict=True)}
    seen |= {mistake.name: look(load(mistake), specimen) for mistake in mistakes if mistake.name not in seen}
    plain = load(None)
    rest = {**_fp8(plain, specimen), **_step(plain, specimen)}
    return first | {name: np.asarray(value, np.float64) for name, value in rest.items()}, {
        mistake.name: seen[mistake.name] for mistake in mistakes
    }


def quick_options(level: int = 0) -> dict[str, Any]:
    """Options of `jax.jit` for a program that is sooner run than optimised: no further than `level` on CPU."""
    return {"compiler_options": {"xla_backend_optimization_level": level}} if jax.default_backend() == "cpu" else {}


def _forward(copy: Patched, specimen: Specimen) -> dict[str, Any]:
    model, windows = copy.adopt(specimen.model, specimen.config), jnp.asarray(specimen.windows)
    plain = copy.model.Execution(
        scan=False, grouped_matmul=ft.partial(copy.model.grouped_matmul, implementation="reference")
    )
    output = model.forward(windows[:, :-1], mtp=True, execution=plain)
    total, parts = copy.losses.of_output(output, model.output_matrix, windows, config=specimen.train.loss)
    seen = (model.unembed(output.hidden), model.unembed(output.mtp[0]), parts.loads, parts.balance, total)
    return dict(zip(FORWARD, seen, strict=True))


def _step(copy: Patched, specimen: Specimen) -> dict[str, Any]:
    """The router biases after a few steps of two unequal micro-batches, whose loads are given."""
    config = replace(specimen.at_peak, micro_batch=1)
    model = copy.adopt(specimen.model, specimen.config)
    rows, experts = specimen.model.bias().shape
    # Expert 0 gets most tokens of one micro-batch and, one by one, a few less than its share of the other.
    first = jnp.full((rows, experts), 10, jnp.int32).at[:, 0].set(90)
    second = jnp.full((rows, experts), 20, jnp.int32).at[:, 0].set(4)
    length = specimen.windows.shape[1] - 1

    def compute(model: Any, part: Any, **_: Any) -> Any:
        loads = jnp.where(part[0, 0] == 0, first, second)
        total = jnp.sum(model.head) * 0
        return total, copy.losses.Losses(total=total, main=total, mtp=total, balance=total, loads=loads)

    def run(state: Any) -> Any:
        windows = jnp.arange(2, dtype=jnp.int32)[:, None] * jnp.ones((1, length + 1), jnp.int32)

        def one(state: Any, _: None) -> Any:
            return copy.step.train_step(state, windows, config=config, sequence_length=length)[0], None

        return jax.lax.scan(one, state, None, length=STEPS)[0].model.bias()

    with _instead(copy.losses, compute):
        return {"router bias": jax.jit(run)(copy.step.TrainState.of(model, config, sequence_length=length))}


@contextmanager
def _instead(losses: Any, compute: Any) -> Iterator[None]:
    """The copy's objective replaced."""
    kept, losses.compute = losses.compute, compute
    try:
        yield
    finally:
        losses.compute = kept


def _fp8(copy: Patched, _: Specimen) -> dict[str, Any]:
    """Products with a square weight of 2 x 2 unequal blocks, by a plain layer and by one with powers of two as scales."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(8, 256)), jnp.float32) for _ in range(2))
    w = jnp.asarray(rng.normal(size=(256, 256)) * np.repeat([1.0, 8.0], 128)[:, None], jnp.float32)
    products, gradients = [], []
    for place in ("ffn.down", "attention.out"):
        y, pull = jax.vjp(ft.partial(copy.model.fp8_matmul, place=place), x, w)
        products.append(y)
        gradients += [jnp.ravel(g) for g in pull(dy)]
    cast = copy.fp8.cast(jnp.linspace(-600.0, 600.0, 241)).astype(jnp.float32)
    return dict(zip(PRODUCTS, (jnp.stack(products), jnp.concatenate(gradients), cast), strict=True))


def difference(right: np.ndarray, wrong: np.ndarray) -> float:
    """Norm of the difference over the norm of the right one; infinite if something is no number."""
    error = float(np.linalg.norm(wrong - right) / max(float(np.linalg.norm(right)), 1e-30))
    return error if np.isfinite(error) else float("inf")
