"""`debug=true`: steps without jit, a log of compilations, and where a NaN began.

A NaN began in the first array of a step, in the order of its computation, that is not finite. Looked for in what the
step starts from (weights), then in the forward pass (every intermediate that the model can capture, then the losses),
then in the gradient from the end of the network backwards. Slow, and meant for one step.
"""

import functools as ft
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from dsv3lab.config import ROOT, TrainConfig
from dsv3lab.model import LOCAL, DeepSeek, Execution
from dsv3lab.train import losses
from dsv3lab.train.step import gradients

T = TypeVar("T")
_LOCAL = {"attention": "attention output", "router.scores": "router scores", "router.gates": "router gates"}


def without_jit(function: Callable[..., T]) -> Callable[..., T]:
    """The same function run operation by operation: breakpoints and prints in it see numbers."""

    @ft.wraps(function)
    def run(*arguments: Any) -> T:
        with jax.disable_jit():
            return function(*arguments)

    return run


@contextmanager
def compile_log(path: Path) -> Iterator[None]:
    """Append what JAX says of its compilations in here to the file `path`: function, shapes, seconds."""
    logger, handler = logging.getLogger("jax"), logging.FileHandler(path, delay=True)
    handler.addFilter(lambda record: record.getMessage().startswith(("Compiling", "Finished XLA compilation")))
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # thousands of lines, which nobody wants among the outputs of a notebook
    try:
        with jax.log_compiles(True):
            yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
        handler.close()


def first_nonfinite(
    model: DeepSeek,
    windows: Int[Array, "batch seq_plus_one"],
    *,
    config: TrainConfig,
    key: PRNGKeyArray | None = None,
    execution: Execution = LOCAL,
) -> str:
    """Name the first array of a step that holds a NaN or an infinity.

    Args:
        model: as it was before the step.
        windows: the batch of the step.
        config: how the step is trained.
        key: of the step's dropouts, see `step.dropout_key`.
        execution: how the model's mathematics is carried out.

    Returns:
        e.g. "layers[1] moe output, sequence 3 of the batch; the first NaN comes from dsv3lab/model/experts.py:71".
    """
    for name, leaf in named(model):
        if not _finite(leaf):
            return f"the weights before the step: {name}"
    count = config.micro_batches(windows.shape[0])
    size = windows.shape[0] // count
    keys = [key] if key is None or count == 1 else list(jax.random.split(key, count))
    for number in range(count):
        start = number * size
        part, options = windows[start : start + size], {"config": config, "key": keys[number % len(keys)]}
        forward = ft.partial(_forward, model, part, **options, execution=execution)
        for name, array in forward():
            if not _finite(array):
                rows = np.asarray(array).reshape(size, -1) if array.ndim > 1 and array.shape[0] == size else None
                which = "" if rows is None else f", sequence {start + _first_bad(rows) + 1} of the batch"
                return f"{name}{which}{_source(forward)}"
    grads, _ = gradients(model, windows, config=config, key=key, execution=execution)
    for name, leaf in reversed(named(grads)):  # the leaves of a model stand in the order of its forward pass
        if not _finite(leaf):
            layer = _last_bad_layer(name, leaf)
            return f"the backward pass, in the gradient of {name}{layer}"
    return "none of the model's arrays: its forward and backward pass are finite, so it came in behind them"


def named(tree: Any) -> Sequence[tuple[str, Array]]:
    """The leaves of a tree with their paths, e.g. "stacks[0].unit[0].attention.latent_up"."""
    return [
        (jax.tree_util.keystr(path).removeprefix("."), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def in_order(names: Sequence[str]) -> list[str]:
    """Names that can be captured, in the order in which a forward pass computes them: a block ends with `hidden`."""
    blocks = list(dict.fromkeys(_block(name) for name in names))
    return sorted(names, key=lambda name: (blocks.index(_block(name)), name.endswith(".hidden")))


def described(name: str, names: Sequence[str]) -> str:
    """A captured name for a reader: `layers.1.hidden` is what the block's feed-forward part has added to."""
    block, local = _block(name), name.removeprefix(f"{_block(name)}.")
    place = "".join(f"[{part}]" if part.isdecimal() else part for part in block.split("."))
    if local == "hidden":
        routed = any(other.startswith(f"{block}.router.") for other in names)
        return f"{place} {'moe' if routed else 'dense feed-forward'} output"
    return f"{place} {_LOCAL.get(local, local)}" if local != block else place


def _block(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _forward(
    model: DeepSeek, windows: Array, *, config: TrainConfig, key: PRNGKeyArray | None, execution: Execution
) -> Iterator[tuple[str, Array]]:
    """Every array of a forward pass that can be seen, in the order of the computation, and the losses."""
    names = model.capture_names()
    output = model.forward(windows[:, :-1], mtp=True, capture=frozenset(names), key=key, execution=execution)
    captured = in_order([name for name in names if name in output.captured])
    main = [name for name in captured if not name.startswith("mtp.")]
    yield from ((described(name, names), output.captured[name]) for name in main)
    yield "the final norm", output.hidden
    yield from ((described(name, names), output.captured[name]) for name in captured if name not in main)
    yield from ((f"the norm of mtp[{depth}]", hidden) for depth, hidden in enumerate(output.mtp, start=1))
    _, parts = losses.compute(model, windows, config=config.loss, key=key, execution=execution)
    yield from (
        (f"the {text} loss", getattr(parts, key))
        for key, text in (("main", "next-token"), ("mtp", "MTP"), ("balance", "balance"), ("total", "total"))
    )


def _finite(leaf: Array) -> bool:
    return not jnp.issubdtype(leaf.dtype, jnp.inexact) or bool(jnp.all(jnp.isfinite(leaf)))


def _first_bad(rows: np.ndarray) -> int:
    return int(np.argmax(~np.isfinite(rows).all(axis=1)))


def _last_bad_layer(name: str, leaf: Array) -> str:
    """Of a stack's gradient the layer that the backward pass reached first; nothing elsewhere."""
    if not name.startswith("stacks"):
        return ""
    bad = np.flatnonzero(~np.isfinite(np.asarray(leaf).reshape(leaf.shape[0], -1)).all(axis=1))
    return f", repeat {bad[-1]} of its stack"


def _source(forward: Callable[[], Iterator[Any]]) -> str:
    """The line of ours at which the first NaN comes out of an operation; nothing if only infinities occur."""
    try:
        with jax.debug_nans(True):
            list(forward())
    except FloatingPointError as error:
        frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        ours = [
            (path, line)
            for path, line in frames
            if path.is_relative_to(ROOT / "dsv3lab") and path.name != Path(__file__).name
        ]
        if ours:
            path, line = ours[-1]
            return f"; the first NaN comes from {path.relative_to(ROOT).as_posix()}:{line}"
    return ""
