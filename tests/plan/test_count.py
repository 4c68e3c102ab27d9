"""The closed forms against the released numbers of DeepSeek-V3."""

import subprocess
import sys

import pytest

import dsv3lab as dl
from dsv3lab import plan


@pytest.fixture(scope="module")
def v3():
    return dl.config("v3")


def test_v3_parameters_equal_the_checkpoint_to_the_unit(v3):
    counted = plan.parameters(v3)
    assert plan.attention_parameters(v3) == 187_107_328
    assert plan.moe_layer_parameters(v3) == 11_507_286_272
    assert counted.total == 671_026_419_200
    assert counted.activated == 36_625_618_432
    assert counted.mtp == 11_610_068_224
    assert sum(counted.by_part.values()) == counted.total


def test_the_checkpoint_duplicates_embedding_and_head_for_mtp(v3):
    counted = plan.parameters(v3)
    assert counted.total + counted.mtp + 2 * counted.by_part["embedding"] == 684_489_845_504


def test_tied_embeddings_are_the_head_that_every_token_uses():
    untied, tied = (plan.parameters(dl.config("nano", tie_word_embeddings=tie)) for tie in (False, True))
    assert tied.activated == untied.activated
    assert tied.total == untied.total - untied.by_part["embedding"]


def test_v3_kv_cache_is_70_kb_and_llama_405b_is_7_344_times_it(v3):
    assert plan.kv_bytes_per_token(v3, bytes_per_element=2) == 70_272
    llama = dl.config("v3", num_hidden_layers=126)  # 8 key-value heads of 128
    assert plan.kv_bytes_per_token_gqa(llama, groups=8, bytes_per_element=2) == 516_096
    assert plan.kv_bytes_per_token_mha(v3, bytes_per_element=2) == 61 * 128 * 256 * 2


def test_v3_training_flops_are_the_250_gflop_of_the_insights_paper(v3):
    flops = plan.flops_per_token(v3, sequence_length=4096, mtp=False, causal=True)
    assert round(flops / 1e9, 1) == 250.5  # ISCA'25, Table 2 by its formula: 250.46 with norms counted as products


def test_backward_is_twice_the_forward_and_causal_halves_the_scores(v3):
    forward = plan.flops_per_token(v3, sequence_length=4096, backward=False)
    assert plan.flops_per_token(v3, sequence_length=4096) == 3 * forward
    causal = plan.flops_per_token(v3, sequence_length=4096, causal=True, backward=False)
    assert forward - causal == 62 * 128 * (192 + 128) * (4096 - 1)


def test_without_query_compression_the_query_is_one_matrix():
    nano = dl.config("nano")
    plain = dl.config("nano", q_lora_rank=None)
    difference = plan.attention_parameters(nano) - plan.attention_parameters(plain)
    assert difference == 96 * (128 + 4 * 48) + 96 - 128 * 4 * 48


def test_the_planner_does_not_import_jax():
    code = (
        "import sys, dsv3lab as dl, dsv3lab.plan as p; p.parameters(dl.config('v3')); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
