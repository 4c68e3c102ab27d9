"""The configurations in conf/model against published counts, and `dsv3lab model`."""

import json

import pytest

import dsv3lab as dl
from dsv3lab import plan
from dsv3lab.cli import main

# Main model and activated parameters (with the head, without the embedding), to the unit.
PUBLISHED = {
    "v3": (671_026_419_200, 36_625_618_432),
    "v2": (235_741_434_880, 20_851_512_320),
    "v2_lite": (15_706_484_224, 2_451_435_008),
}
# The labels of seed 002, of the Loss-Free paper, and of the model cards.
LABELS = {"tiny": 0.1e9, "small": 1e9, "large": 15e9, "lf_1b": 1e9, "lf_3b": 3e9, "moonlight": 16e9, "kimi_k2": 1e12}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
    counted = plan.parameters(dl.config(name))
    assert (counted.total, counted.activated) == PUBLISHED[name]


@pytest.mark.parametrize("name", LABELS)
def test_totals_are_within_five_percent_of_the_label(name):
    assert plan.parameters(dl.config(name)).total == pytest.approx(LABELS[name], rel=0.05)


def test_the_seeds_table_is_in_the_configurations():
    table = {"tiny": (4, 512, 4), "small": (12, 1024, 8), "large": (32, 4096, 64)}
    for name, (layers, width, experts) in table.items():
        config = dl.config(name)
        assert (config.num_hidden_layers, config.hidden_size, config.n_routed_experts) == (layers, width, experts)
        assert config.num_nextn_predict_layers == 2
        assert [layer for layer, moe in enumerate(config.moe_layers) if not moe] == list(range(0, layers, 3))


def test_v2_trains_at_the_155_gflop_of_the_insights_paper():
    flops = plan.flops_per_token(dl.config("v2"), sequence_length=4096, causal=True)
    assert round(flops / 1e9, 2) == 155.31


def test_show_prints_the_counts_of_v3(capsys):
    assert main(["model", "show", "v3"]) == 0
    shown = capsys.readouterr().out
    for figure in ("671,026,419,200", "36,625,618,432", "11,610,068,224", "70,272", "layers 0, 1, 2"):
        assert figure in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_show_as_json_adds_up_and_takes_overrides(capsys):
    assert main(["model", "show", "nano", "q_lora_rank=null", "--json", "--sequence-length", "128"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"]["q_lora_rank"] is None
    assert sum(t["parameters"] for t in shown["tensors"]) == shown["parameters"] + shown["mtp_parameters"]
    config = dl.config("nano", q_lora_rank=None)
    expected = plan.flops_per_token(config, sequence_length=128, causal=True)
    assert shown["training_flops_per_token"] == expected
    traced = plan.flops_per_token(config, sequence_length=128, mtp=False, backward=False)
    assert shown["forward_flops_per_token_all_keys"] == traced > shown["forward_flops_per_token"]


def test_list_has_every_model_smallest_first(capsys):
    assert main(["model", "list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:] if " GFLOP" in line]
    assert names[0] == "museum" and names[-1] == "kimi_k2" and set(names) >= PUBLISHED.keys() | LABELS.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["v33"], "did you mean 'v3'"),
        (["v3", "hiden_size=8"], "did you mean 'hidden_size'"),
        (["v3", "hidden_size"], "'hidden_size' is not of the form key=value"),
        (["v3", "n_group=3"], "256 experts do not split into 3 equal groups"),
    ],
)
def test_bad_words_are_refused_in_a_sentence(words, said, capsys):
    assert main(["model", "show", *words]) == 2
    assert said in capsys.readouterr().err
