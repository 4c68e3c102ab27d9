"""A power law through a few trainings, and what it says of a further one: a line in log-log, by least squares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ERRORS = 2.0
"""Half the width of the range of a prediction, in standard errors."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """loss = scale * compute ** -exponent, and what its uncertainty follows from.

    scale: nats per token at one FLOP.
    exponent: by which the loss falls.
    scatter: standard deviation of ln(loss) about the line (n - 2 in the denominator).
    points: trainings behind it.
    mean: of ln(compute).
    squares: sum of the squared distances of ln(compute) from the mean.
    """

    scale: float
    exponent: float
    scatter: float
    points: int
    mean: float
    squares: float

    def loss(self, compute: float) -> float:
        """The line at `compute` FLOPs, in nats per token."""
        return self.scale * compute**-self.exponent

    def range(self, compute: float) -> tuple[float, float]:
        """Where one further training at `compute` FLOPs is expected: `ERRORS` standard errors on either side.

        The error is that of a single new observation of a linear regression. Too few points make it too small, and a
        law that bends (an irreducible loss) makes any extrapolation too low: both are what a prediction shows.
        """
        distance = (math.log(compute) - self.mean) ** 2 / self.squares
        width = ERRORS * self.scatter * math.sqrt(1 + 1 / self.points + distance)
        return self.loss(compute) * math.exp(-width), self.loss(compute) * math.exp(width)


def fit(compute: Sequence[float], loss: Sequence[float]) -> Law:
    """The law through the points (`compute` in FLOPs, `loss` in nats per token).

    Raises:
        ValueError: for fewer than three points, all at one compute, or numbers that have no logarithm.
    """
    xs, ys = np.asarray(compute, float), np.asarray(loss, float)
    if len(xs) != len(ys) or len(xs) < 3 or len(set(xs)) < 2:
        raise ValueError(f"a law needs three trainings or more, at two computes or more; there are {len(xs)}")
    if not (np.isfinite(xs).all() and np.isfinite(ys).all() and (xs > 0).all() and (ys > 0).all()):
        raise ValueError("a law needs finite losses and computes above zero")
    x, y = np.log(xs), np.log(ys)
    squares = float(np.sum((x - x.mean()) ** 2))
    slope = float(np.sum((x - x.mean()) * (y - y.mean())) / squares)
    start = float(y.mean() - slope * x.mean())
    residuals = y - start - slope * x
    scatter = math.sqrt(float(np.sum(residuals**2)) / (len(x) - 2))
    law = Law(
        scale=math.exp(start), exponent=-slope, scatter=scatter, points=len(x), mean=float(x.mean()), squares=squares
    )
    return law
