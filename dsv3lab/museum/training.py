"""Short trainings with a mistake: what the loss says of it."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsv3lab.museum.patched import Patched
from dsv3lab.museum.probe import Specimen, quick_options

RIGHT = "the right code"
OTHERS = tuple(f"{RIGHT} from other weights, draw {number}" for number in (1, 2, 3))
"""Trainings without a mistake, too: how far apart the losses of right code are."""
FEW_STEPS = 10
"""Up to as many steps a program is sooner run than optimised."""


@dataclass(frozen=True)
class Lesson:
    """What one short training went through.

    loss: next-token loss, nats per token [steps].
    mtp_loss: loss of multi-token prediction, without lambda, nats per token [steps].
    maxvio: mean over layers of MaxVio [steps], computed by the trained code itself.
    """

    loss: np.ndarray
    mtp_loss: np.ndarray
    maxvio: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """Next-token and MTP loss together, so that a mistake in either shows [steps]."""
        return self.loss + self.mtp_loss


def train(copy: Patched, specimen: Specimen, batches: np.ndarray) -> dict[str, Lesson]:
    """Train the specimen with the code of `copy` on `batches` [steps, batch, seq + 1], at the peak learning rate.

    All steps are one program, and so are all mistakes of a `copy.switch`: it takes the number of the mistake as an
    argument. Each batch is taken in two micro-batches, which some mistakes need.

    Returns:
        with a switch: the lessons `RIGHT` and `OTHERS`, and one for each mistake by its name; without: one, by the name
        of the copy's mistake, or `RIGHT`.
    """
    switch, length = copy.switch, batches.shape[-1] - 1
    config = replace(specimen.at_peak, micro_batch=batches.shape[1] // 2, batch_size=batches.shape[1])

    def run(number: Any, model: Any, batches: Any) -> Any:
        def one(state: Any, windows: Any) -> Any:
            state, metrics = copy.step.train_step(state, windows, config=config, sequence_length=length)
            return state, (metrics["loss"], metrics["mtp_loss"], jnp.mean(metrics["maxvio"]))

        start = copy.step.TrainState.of(model, config, sequence_length=length)
        with copy.set_to(number):
            return jax.lax.scan(one, start, batches)[1]

    compiled = jax.jit(run, **quick_options(0 if len(batches) <= FEW_STEPS else 1))
    right = copy.adopt(specimen.model, specimen.config)

    # Adopted once: another copy of the static fields would be another program.
    def lesson(number: int, model: Any = right) -> Lesson:
        return Lesson(*jax.device_get(compiled(jnp.int32(number), model, jnp.asarray(batches))))

    if switch is None:
        return {RIGHT if copy.mistake is None else copy.mistake.name: lesson(-1)}
    batch, seed = specimen.windows.shape[0], specimen.train.seed
    drawn = [
        Specimen.draw(
            specimen.config, replace(specimen.train, seed=seed + number), batch=batch, sequence_length=length
        ).model
        for number, _ in enumerate(OTHERS, start=1)
    ]
    structure = jax.tree.structure(right)
    others = {
        name: lesson(-1, jax.tree.unflatten(structure, jax.tree.leaves(model)))
        for name, model in zip(OTHERS, drawn, strict=True)
    }
    by_name = {mistake.name: lesson(number) for number, mistake in enumerate(switch.mistakes)}
    return {RIGHT: lesson(-1), **others, **by_name}
