"""A short training with a mistake: what the loss says of it."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsv3lab.museum.patched import Patched
from dsv3lab.museum.probe import Specimen


@dataclass(frozen=True)
class Lesson:
    """What one short training went through.

    loss: next-token loss, nats per token [steps].
    maxvio: mean over layers of MaxVio [steps].
    """

    loss: np.ndarray
    maxvio: np.ndarray


def train(copy: Patched, specimen: Specimen, batches: np.ndarray) -> Lesson:
    """Train the specimen with the code of `copy` on `batches` [steps, batch, seq + 1], at the peak learning rate.

    All steps are one program, compiled without costly passes, since it runs once.
    """
    length = batches.shape[-1] - 1
    config = replace(specimen.at_peak, micro_batch=None, batch_size=batches.shape[1])
    model = copy.adopt(specimen.model, specimen.config)
    state = copy.step.TrainState.of(model, config, sequence_length=length)

    def run(state: Any, batches: Any) -> Any:
        def one(state: Any, windows: Any) -> Any:
            state, metrics = copy.step.train_step(state, windows, config=config, sequence_length=length)
            return state, (metrics["loss"], jnp.mean(metrics["maxvio"]))

        return jax.lax.scan(one, state, batches)[1]

    options: Any = {}
    if jax.default_backend() == "cpu":
        options["compiler_options"] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    loss, maxvio = jax.device_get(jax.jit(run, **options)(state, jnp.asarray(batches)))
    return Lesson(loss=loss, maxvio=maxvio)
