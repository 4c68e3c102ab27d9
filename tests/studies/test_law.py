"""The fit finds the law that was planted, and its range covers what follows the law."""

import math

import numpy as np
import pytest

from dsv3lab.studies import law

COMPUTES = [1e12, 3e12, 1e13]


def test_a_planted_law_is_recovered() -> None:
    fitted = law.fit(COMPUTES, [40 * c**-0.07 for c in COMPUTES])
    assert (fitted.scale, fitted.exponent) == pytest.approx((40, 0.07), rel=1e-9)
    assert fitted.loss(1e14) == pytest.approx(40 * 1e14**-0.07, rel=1e-9)
    low, high = fitted.range(1e14)
    assert low <= 40 * 1e14**-0.07 * (1 + 1e-9) and high == pytest.approx(low, rel=1e-9)


def test_the_range_is_that_of_a_new_observation() -> None:
    """Against NumPy's regression, whose covariance is scaled by the residuals in the same way."""
    rng = np.random.default_rng(0)
    losses = [5 * (c / 1e12) ** -0.08 * math.exp(0.01 * rng.normal()) for c in COMPUTES * 2]
    fitted = law.fit(COMPUTES * 2, losses)
    (slope, start), covariance = np.polyfit(np.log(COMPUTES * 2), np.log(losses), 1, cov=True)
    x = math.log(1e14)
    error = math.sqrt(np.array([x, 1]) @ covariance @ np.array([x, 1]) + fitted.scatter**2)
    low, high = fitted.range(1e14)
    assert fitted.loss(1e14) == pytest.approx(math.exp(start + slope * x), rel=1e-9)
    assert math.log(high / low) == pytest.approx(2 * law.ERRORS * error, rel=1e-6)


def test_most_new_trainings_fall_into_the_range() -> None:
    rng = np.random.default_rng(1)

    def draw(compute: float) -> float:
        return 5 * (compute / 1e12) ** -0.08 * math.exp(0.01 * rng.normal())

    inside = 0
    for _ in range(300):
        low, high = law.fit(COMPUTES * 2, [draw(c) for c in COMPUTES * 2]).range(1e14)
        inside += low <= draw(1e14) <= high
    assert 0.80 < inside / 300 < 0.95, "two standard errors with four degrees of freedom: 88 %"


@pytest.mark.parametrize(
    ("computes", "losses"),
    [([1e12, 1e13], [5.0, 4.0]), ([1e12] * 3, [5.0, 4.0, 4.5]), (COMPUTES, [5.0, float("nan"), 4.0])],
)
def test_what_no_line_can_be_drawn_through_is_refused(computes: list[float], losses: list[float]) -> None:
    with pytest.raises(ValueError, match="a law needs"):
        law.fit(computes, losses)
