"""Where a NaN began, in models that were broken on purpose."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab.config import ROOT
from dsv3lab.model import DeepSeek
from dsv3lab.train import debug
from dsv3lab.train.step import split
from tests import builders

pytestmark = pytest.mark.limit(200)  # operation by operation, each compiled for itself the first time
MODEL = builders.model_config(num_hidden_layers=2, first_k_dense_replace=1)
TRAIN = builders.train_config(micro_batch=2)


@pytest.fixture(scope="module")
def model() -> DeepSeek:
    return builders.random_model(MODEL)


@pytest.fixture(scope="module")
def windows() -> jax.Array:
    return jnp.asarray(builders.FakeDataset().batch_at(0, batch_size=4))


def where(model: DeepSeek, windows: jax.Array) -> str:
    return debug.first_nonfinite(model, windows, config=TRAIN)


def broken(model: DeepSeek, place: Any, value: float) -> DeepSeek:
    return eqx.tree_at(place, model, replace_fn=lambda leaf: leaf.at[(0,) * leaf.ndim].set(value))


def test_a_model_that_is_whole_is_not_blamed(model: DeepSeek, windows: jax.Array) -> None:
    assert where(model, windows).startswith("none of the model's arrays")


def test_a_bad_weight_is_named(model: DeepSeek, windows: jax.Array) -> None:
    bad = broken(model, lambda m: m.stacks[0].unit[1].ffn.router.weight, np.nan)
    assert where(bad, windows) == "the weights before the step: stacks[0].unit[1].ffn.router.weight"


def test_a_forward_pass_that_overflows_names_part_sequence_and_line(model: DeepSeek, windows: jax.Array) -> None:
    def shared(m: DeepSeek) -> Any:
        return m.stacks[0].unit[1].ffn.shared

    bad = eqx.tree_at(shared, model, jax.tree.map(lambda leaf: 1e20 * leaf, shared(model)))  # each weight is finite
    found = where(bad, windows)
    assert re.match(
        r"layers\[1\] moe output, sequence 1 of the batch; the first NaN comes from dsv3lab/\S+\.py:\d+$", found
    )


def test_a_single_sequence_is_found_in_a_later_micro_batch(
    model: DeepSeek, windows: jax.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(model: DeepSeek, part: jax.Array, **options: Any) -> Any:
        yield "embedding", part * 1.0
        yield "layers[0] attention output", jnp.where(part == 99, jnp.inf, 0.0)

    monkeypatch.setattr(debug, "_forward", forward)
    assert where(model, windows.at[3, 5].set(99)) == "layers[0] attention output, sequence 4 of the batch"


def test_a_backward_pass_names_the_weight_nearest_to_the_loss(
    model: DeepSeek, windows: jax.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    grads = jax.tree.map(jnp.zeros_like, split(model)[0])
    bad = eqx.tree_at(
        lambda g: (g.embedding, g.stacks[0].unit[1].attention.out), grads, replace_fn=lambda a: a + jnp.nan
    )
    monkeypatch.setattr(debug, "gradients", lambda *arguments, **options: (bad, None))
    expected = "the backward pass, in the gradient of stacks[0].unit[1].attention.out, repeat 0 of its stack"
    assert where(model, windows) == expected


def test_a_block_ends_with_its_hidden_state(model: DeepSeek) -> None:
    names = debug.in_order(model.capture_names())
    assert names[0] == "embedding" and names[-1] == "mtp.1.hidden"
    assert [name for name in names if name.startswith("layers.1.")] == [
        *("layers.1.attention", "layers.1.router.scores", "layers.1.router.ids", "layers.1.router.gates"),
        "layers.1.hidden",
    ]
    told = [debug.described(name, names) for name in names]
    assert told[:3] == ["embedding", "layers[0] attention output", "layers[0] dense feed-forward output"]
    assert told[4] == "layers[1] router scores" and told[-1] == "mtp[1] moe output"


def test_without_jit_a_function_sees_numbers() -> None:
    seen: list[bool] = []

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        seen.append(isinstance(x, jax.core.Tracer))
        return 2 * x

    double(jnp.ones(2))
    assert float(debug.without_jit(double)(jnp.float32(2.0))) == 4.0
    assert seen == [True, False]


FIT = """
import sys
from dataclasses import replace
from pathlib import Path
from dsv3lab import train
from tests import builders

model = builders.model_config(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0)
config = builders.run_config(model=model, train=builders.train_config(micro_batch=None))
wild = replace(config.train.schedule, peak_lr=1e30)
config = replace(config, debug=True, train=replace(config.train, schedule=wild))
losses = {}
try:
    report = lambda metrics, step: losses.update({step: metrics.get("train/loss")})
    train.fit(config, builders.FakeDataset(), Path(sys.argv[1]), report=report)
except train.Diverged as error:
    print(error, losses[1], sep="\\n")
"""


@pytest.mark.slow  # every operation of a whole step is compiled for itself
def test_a_run_that_breaks_says_where_from_its_real_steps(tmp_path: Path) -> None:
    """In a process of its own: the type checks of the tests ask for arrays where a loop without jit has integers."""
    done = subprocess.run([sys.executable, "-c", FIT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    message, loss = done.stdout.splitlines()[-2:]
    assert (
        message.startswith("step 2: the first non-finite value is in layers[0] ")
        and "sequence 1 of the batch" in message
    )
    assert message.endswith(f"the loss before it was {float(loss):.4f}")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["compile.log", "lock", "metrics.jsonl"]
