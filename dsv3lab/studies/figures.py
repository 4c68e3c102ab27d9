"""The figures of each study, from its result."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dsv3lab import plots
from dsv3lab.studies.law import Law

Figures = dict[str, tuple[Figure, str]]
"""Name -> figure, and its title in the report."""


def of(result: Mapping[str, Any]) -> Figures:
    """The figures of a study's result."""
    return _FIGURES[result["study"]](result)


def _balance(result: Mapping[str, Any]) -> Figures:
    methods = _grouped(result)
    seeds = _seeds(result)
    maxvio = plots.bands(
        {name: (_steps(runs), [one["curves"]["maxvio"] for one in runs]) for name, runs in methods.items()},
        title=f"Imbalance over training, {seeds}",
        x="optimizer step",
        y="MaxVio, share of the mean load",
    )
    base = {one["seed"]: np.array(one["curves"]["loss"]) for one in methods["nothing"]}
    loss = plots.bands(
        {
            name: (_steps(runs), [np.array(one["curves"]["loss"]) - base[one["seed"]] for one in runs])
            for name, runs in methods.items()
            if name != "nothing"
        },
        title=f"Training loss minus that without balance, {seeds}",
        x="optimizer step",
        y="difference in nats per token",
        references={"as with nothing": 0.0},
    )
    return {
        "maxvio": (maxvio, "MaxVio of the balance methods, several seeds"),
        "loss": (loss, "Loss of the balance methods minus that without, paired by seed"),
    }


def _fp8(result: Mapping[str, Any]) -> Figures:
    formats, summary = _grouped(result), result["summary"]
    base = {one["seed"]: np.array(one["curves"]["loss"]) for one in formats["BF16"]}
    mean = np.mean(list(base.values()), axis=0)
    others = [100 * (row / mean - 1) for row in base.values()]
    paired = [100 * (np.array(one["curves"]["loss"]) / base[one["seed"]] - 1) for one in formats["FP8"]]
    difference = plots.bands(
        {
            "BF16 seeds against their mean": (_steps(formats["BF16"]), others),
            "FP8 against BF16 of the same seed": (_steps(formats["FP8"]), paired),
        },
        title=f"Relative difference of the training loss, {_seeds(result)}",
        x="optimizer step",
        y="difference, %",
        references={f"{sign}{100 * summary['allowed']:.2f} %": way * 100 * summary["allowed"] for sign, way in _SIGNS},
    )
    loss = plots.bands(
        {name: (_steps(runs), [one["curves"]["loss"] for one in runs]) for name, runs in formats.items()},
        title=f"Training loss in FP8 and in BF16, {_seeds(result)}",
        x="optimizer step",
        y="nats per token",
    )
    return {
        "difference": (difference, "FP8 against BF16, paired by seed, beside the spread of the BF16 seeds"),
        "loss": (loss, "Training loss in FP8 and in BF16, several seeds"),
    }


def _scaling(result: Mapping[str, Any]) -> Figures:
    sizes, written = _grouped(result), result["prediction"]
    labels = {name: f"{name}, {runs[0]['parameters'] / 1e6:.2f}M parameters" for name, runs in sizes.items()}
    tokens = plots.bands(
        {
            labels[name]: (
                np.array(_steps(runs)) * runs[0]["tokens"] / runs[0]["steps"] / 1e6,
                [one["curves"]["loss"] for one in runs],
            )
            for name, runs in sizes.items()
        },
        title="Training loss against tokens",
        x="tokens, millions",
        y="nats per token",
    )
    made: Figures = {"tokens": (tokens, "Training loss against tokens, by size")}
    if written is not None:
        fitted = Law(**written["law"])
        (last,) = [one for one in result["trainings"] if one["name"] == written["training"]]
        before = {name: runs for name, runs in sizes.items() if name != last["variant"]}
        points = {
            labels[name]: ([one["flops"] for one in runs], [one["validation_loss"] for one in runs])
            for name, runs in before.items()
        }
        computes = np.geomspace(min(xs[0] for xs, _ in points.values()), written["flops"], 40)
        law = plots.power_law(
            points,
            (computes, [fitted.loss(c) for c in computes]),
            predicted=(written["flops"], written["loss"], written["low"], written["high"]),
            measured=(last["flops"], last["validation_loss"]),
            title=f"Held-out loss: predicted {written['loss']:.3f}, measured {last['validation_loss']:.3f}",
            x="useful matmul FLOPs of the training",
            y="held-out loss, nats per token",
        )
        made["law"] = (law, "Loss against compute: a line through the small trainings, and the one that it predicted")
    return made


_SIGNS = (("+", 1.0), ("-", -1.0))
_FIGURES: dict[str, Callable[[Mapping[str, Any]], Figures]] = {"balance": _balance, "fp8": _fp8, "scaling": _scaling}


def _grouped(result: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in result["trainings"]:
        found.setdefault(one["variant"], []).append(one)
    return found


def _steps(runs: list[Mapping[str, Any]]) -> list[float]:
    return runs[0]["curves"]["step"]


def _seeds(result: Mapping[str, Any]) -> str:
    count = len(result["settings"]["seeds"])
    return f"mean and range of {count} seeds" if count > 1 else "one seed"
