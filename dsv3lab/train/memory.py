"""What one gradient keeps and computes under each remat policy: traced, counted, and compiled for a look at the rest.

Layers run in a scan here, so that a unit's weights are read where they are. Unrolled, each unit is given a slice of
its stack's arrays, and those slices would be kept as well.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from dsv3lab.config import RunConfig
from dsv3lab.model import COUNTABLE, DeepSeek, abstract, trainable
from dsv3lab.parallel import with_remat
from dsv3lab.program import Residuals, flops, residuals
from dsv3lab.train import losses
from dsv3lab.train.loop import execution_of
from dsv3lab.train.step import gradients

Policy = Literal["none", "full", "products", "report"]


def saved(config: RunConfig, policy: Policy, *, sequences: int) -> Residuals:
    """What the gradient of `sequences` windows keeps between its passes, in the number formats of the run; traced only."""
    execution = execution_of(_under(config, policy))
    model = abstract(config.model)
    trained, rest = eqx.partition(model, trainable(model))

    def objective(trained: DeepSeek, rest: DeepSeek, windows: Array) -> Array:
        return losses.compute(eqx.combine(trained, rest), windows, config=config.train.loss, execution=execution)[0]

    return residuals(objective, trained, rest, _windows(config, sequences))


def gradient_flops(config: RunConfig, policy: Policy, *, sequences: int) -> int:
    """Matmul FLOPs of the same gradient, those of recomputation included; traced only."""
    execution = with_remat(replace(COUNTABLE, scan=True), policy)
    train = replace(config.train, micro_batch=None)

    def gradient(model: DeepSeek, windows: Array) -> Any:
        return gradients(model, windows, config=train, execution=execution)

    return flops(gradient, abstract(config.model), _windows(config, sequences))


@dataclass(frozen=True)
class Compiled:
    """A gradient that can be run, and the bytes of temporaries that its compiler wants."""

    program: Any
    temporaries: int

    def __call__(self, model: DeepSeek, windows: Int[Array, "batch seq_plus_one"]) -> DeepSeek:
        """The gradient of the trainable leaves."""
        return self.program(model, windows)


def compiled_gradient(config: RunConfig, policy: Policy, *, sequences: int) -> Compiled:
    """The gradient of `sequences` windows at once, compiled for this device."""
    under = _under(config, policy)
    execution = execution_of(under)

    def gradient(model: DeepSeek, windows: Array) -> DeepSeek:
        return gradients(model, windows, config=under.train, execution=execution)[0]

    program = jax.jit(gradient).lower(abstract(config.model), _windows(config, sequences)).compile()
    stats: Any = program.memory_analysis()
    return Compiled(program, stats.temp_size_in_bytes)


def _under(config: RunConfig, policy: Policy) -> RunConfig:
    return replace(config, train=replace(config.train, remat=policy, scan_layers=True, micro_batch=None))


def _windows(config: RunConfig, sequences: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((sequences, config.data.sequence_length + 1), jnp.int32)
