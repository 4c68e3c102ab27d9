"""What the trainings of a study say together: pure functions of their outcomes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Outcomes = Sequence[Mapping[str, Any]]
Summary = dict[str, Any]

FP8_FLOOR, SPREAD_CAP = 0.0025, 0.01
"""The relative loss error that the report saw in FP8 (3.3 and B.1), and the most of the seeds' spread that excuses more."""
FP8_TOKENS = 1_000_000
"""Below so many tokens the loss has hardly begun to fall in any format: FP8 is not judged, as in the gate `fp8_loss`."""


def balance(outcomes: Outcomes, prediction: Mapping[str, Any] | None) -> Summary:
    """Of each method: loss and MaxVio by seed, their means and spreads (highest minus lowest)."""
    del prediction
    return {"variants": {name: _of_variant(runs) for name, runs in _by_variant(outcomes).items()}}


def fp8(outcomes: Outcomes, prediction: Mapping[str, Any] | None) -> Summary:
    """FP8 against BF16, paired by seed: relative difference of the loss, beside what the seeds of BF16 differ by.

    `allowed` is the larger of the report's 0.25 % and the spread of the BF16 seeds, the spread capped at 1 %; what is
    compared with it is the mean distance, so that a seed above and one below do not cancel. `within` is `None`, not
    judged, if a training saw fewer than `FP8_TOKENS` tokens.
    """
    del prediction
    pairs = _by_variant(outcomes)
    ours, base = ({one["seed"]: one for one in pairs[name]} for name in ("FP8", "BF16"))
    differences = {key: [ours[seed][key] / base[seed][key] - 1 for seed in base] for key in ("loss", "validation_loss")}
    spread, allowed = allowed_difference([one["loss"] for one in base.values()])
    distance = float(np.mean(np.abs(differences["loss"])))
    tokens = min(one["tokens"] for one in outcomes)
    return {
        "variants": {name: _of_variant(runs) for name, runs in pairs.items()},
        "seeds": list(base),
        "relative_difference": differences["loss"],
        "relative_difference_validation": differences["validation_loss"],
        "mean_relative_distance": distance,
        "tokens": tokens,
        "bf16_spread": spread,
        "allowed": allowed,
        "within": distance <= allowed if tokens >= FP8_TOKENS else None,
    }


def allowed_difference(losses: Sequence[float]) -> tuple[float, float]:
    """The spread of the losses of BF16 seeds, relative to their mean, and how far FP8 may differ from them by it."""
    spread = (max(losses) - min(losses)) / float(np.mean(losses))
    return spread, max(FP8_FLOOR, min(spread, SPREAD_CAP))


def scaling(outcomes: Outcomes, prediction: Mapping[str, Any] | None) -> Summary:
    """The held-out loss that was predicted, and the one that was measured."""
    variants = {name: _of_variant(runs) for name, runs in _by_variant(outcomes).items()}
    if prediction is None:
        return {"variants": variants}
    (measured,) = [one["validation_loss"] for one in outcomes if one["name"] == prediction["training"]]
    return {
        "variants": variants,
        "predicted": prediction["loss"],
        "measured": measured,
        "relative_difference": measured / prediction["loss"] - 1,
        "within": prediction["low"] <= measured <= prediction["high"],
    }


ANALYSES: dict[str, Callable[[Outcomes, Mapping[str, Any] | None], Summary]] = {
    "balance": balance,
    "fp8": fp8,
    "scaling": scaling,
}
"""Study -> what is made of its trainings."""


_VERDICTS = {True: "within", False: "NOT within", None: f"below {FP8_TOKENS:,} tokens not judged by"}


def words(name: str, summary: Mapping[str, Any]) -> list[str]:
    """The summary in lines for people."""
    rows = [f"{'':<22} {'loss':>8} {'spread':>9} {'held out':>9} {'MaxVio':>7}   nats per token; spread is max - min"]
    for variant, one in summary["variants"].items():
        rows.append(
            f"{variant:<22} {one['loss']:8.4f} {one['loss_spread']:9.4f} {one['validation_loss']:9.4f} {one['maxvio']:7.3f}"
        )
    if name == "fp8":
        each = ", ".join(f"{100 * value:+.3f} %" for value in summary["relative_difference"])
        rows.append(
            f"FP8 against BF16, by seed: {each}; mean distance {100 * summary['mean_relative_distance']:.3f} %, "
            f"{_VERDICTS[summary['within']]} the allowed {100 * summary['allowed']:.3f} % "
            f"(BF16 seeds differ by {100 * summary['bf16_spread']:.3f} %); {summary['tokens']:,} tokens each"
        )
    if "predicted" in summary:
        rows.append(
            f"predicted {summary['predicted']:.4f}, measured {summary['measured']:.4f} nats per token: "
            f"{100 * summary['relative_difference']:+.2f} %, {'inside' if summary['within'] else 'OUTSIDE'} the range "
            "that was written down"
        )
    return rows


def _by_variant(outcomes: Outcomes) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in outcomes:
        found.setdefault(one["variant"], []).append(one)
    return found


def _of_variant(runs: Outcomes) -> Summary:
    losses = [one["loss"] for one in runs]
    return {
        "seeds": [one["seed"] for one in runs],
        "losses": losses,
        "loss": float(np.mean(losses)),
        "loss_spread": max(losses) - min(losses),
        "validation_loss": float(np.mean([one["validation_loss"] for one in runs])),
        "maxvio": float(np.mean([one["maxvio"] for one in runs])),
        "nonfinite_steps": sum(one["nonfinite_steps"] for one in runs),
    }
