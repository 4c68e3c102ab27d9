"""The planner's closed forms against the traced model, to the unit: parameters and FLOPs, forward and backward."""

import dataclasses
import math
from collections import Counter

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import dsv3lab as dl
from dsv3lab import plan, program
from dsv3lab.config import CONF
from dsv3lab.model import COUNTABLE
from dsv3lab.train import losses
from tests import builders


def _counted(model):
    mtp = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.mtp))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model)) - mtp, mtp


MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def _by_copy(model):
    """Shape of every array -> how many there are, the layers of a stack apart."""
    shapes = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        stacked = path[0].name == "stacks"
        shapes[leaf.shape[1:] if stacked else leaf.shape] += leaf.shape[0] if stacked else 1
    return shapes


@pytest.mark.parametrize("name", MODELS)
def test_the_abstract_model_has_the_planned_arrays(name):
    config = dl.config(name)
    model = dl.abstract(config)
    planned = plan.parameters(config)
    assert _counted(model) == (planned.total, planned.mtp)
    arrays = plan.tensors(config)
    shapes = Counter()
    for tensor in arrays:
        shapes[tensor.shape] += tensor.copies
    assert shapes == _by_copy(model)
    by_part = Counter()
    for tensor in arrays:
        by_part[tensor.part] += tensor.parameters
    assert by_part == Counter(planned.by_part | {"mtp": planned.mtp})


def test_the_abstract_v3_is_the_checkpoint_to_the_unit():
    assert _counted(dl.abstract(dl.config("v3"))) == (671_026_419_200, 11_610_068_224)


def _forward(mtp, scan):
    def forward(model, tokens):
        output = model.forward(tokens, mtp=mtp, execution=dataclasses.replace(COUNTABLE, scan=scan))
        return [model.unembed(hidden) for hidden in (output.hidden, *output.mtp)]

    return forward


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": None, "num_nextn_predict_layers": 2, "n_shared_experts": 0},
        {"dense_layer_interval": 2, "num_hidden_layers": 5, "tie_word_embeddings": True},
    ],
)
@pytest.mark.parametrize("mtp", [False, True])
@pytest.mark.parametrize("scan", [False, True])
def test_forward_flops_are_the_planned_ones(changes, mtp, scan):
    config = builders.model_config(**changes)
    tokens = jax.ShapeDtypeStruct((3, 10), jnp.int32)
    counted = program.flops(_forward(mtp, scan), dl.abstract(config), tokens)
    assert counted == 30 * plan.flops_per_token(config, sequence_length=10, mtp=mtp, backward=False)


@pytest.mark.parametrize("name", MODELS)
def test_forward_flops_of_every_configuration_are_the_planned_ones(name):
    config = dl.config(name)
    mtp = config.num_nextn_predict_layers > 0
    counted = program.flops(_forward(mtp, True), dl.abstract(config), jax.ShapeDtypeStruct((2, 4096), jnp.int32))
    assert counted == 2 * 4096 * plan.flops_per_token(config, sequence_length=4096, backward=False)


def test_the_training_gradient_is_three_times_the_forward():
    config, train = builders.model_config(), builders.train_config()

    def gradient(model, windows):
        trained, rest = eqx.partition(model, dl.trainable(model))

        def objective(trained):
            return losses.compute(eqx.combine(trained, rest), windows, config=train.loss, execution=COUNTABLE)[0]

        return jax.value_and_grad(objective)(trained)

    windows = jax.ShapeDtypeStruct((4, 13), jnp.int32)  # 48 tokens: three whole chunks of the vocabulary loss
    counted = program.flops(gradient, dl.abstract(config), windows)
    assert counted == 48 * plan.flops_per_token(config, sequence_length=12)
