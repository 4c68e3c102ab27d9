"""JSON in the seeds' layout: every key is mapped in its units, without effect, or refused by its name."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from dsv3lab import cli
from dsv3lab.config import CONF, ConfigError, build, plain, seed_json
from dsv3lab.config import help as helps
from dsv3lab.config.run import RunConfig
from dsv3lab.config.seed_keys import BLOCKS, RULES, Derived, Idle, Off, To
from dsv3lab.workbook.arguments import parse
from dsv3lab.workbook.compose import compose
from tests.workbook import samples

EXAMPLES = sorted((Path(__file__).parent / "seed_json").glob("*.json"))


def base() -> dict[str, Any]:
    return samples.configuration(1)[1]


def read(document: dict[str, Any]) -> seed_json.Reading:
    return seed_json.read(document, base())


def values(reading: seed_json.Reading) -> dict[str, Any]:
    return {target: one.value for target, one in reading.mapped.items()}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split(".")
        place = document
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return document


def built(target: str) -> bool:
    """Whether the configuration has this key, or this file of a group."""
    return target in helps.keys() if "=" not in target else (CONF / f"{target.replace('=', '/')}.yaml").is_file()


def at(config: Any, target: str) -> Any:
    value = plain(config)
    for part in target.split("."):
        value = value[part]
    return value


def refusals(name: str) -> set[str]:
    """What the seeds' example asks for and is not there."""
    missing = {
        "low_memory": {"distributed.zero_stage", "distributed.zero_offload"},
        "max_speed": {"model.mla.use_flash_mla", "model.moe.use_deep_ep"},
        "domains": {"data.dataset_name"} | {f"data.sources[{i}] (name, subset, weight, description)" for i in (0, 1)},
        "large": {f"distributed.{word}_parallel_size" for word in ("tensor", "pipeline", "expert")}
        | {"distributed.zero_stage"},
    }
    once_built = {
        "low_memory": {"training.use_bf16": "precision=bf16"},
        "max_speed": {"training.use_fp8": "precision=fp8"},
        "fragmented": {"model.dense_layer_interval": "model.dense_layer_interval"},
    }
    waiting = {key for key, target in once_built.get(name, {}).items() if not built(target)}
    return missing.get(name, set()) | waiting


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_the_seeds_ask_for_and_is_not_there_is_refused_all_at_once(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, out = refusals(path.stem), tmp_path / "out.yaml"
    status = cli.main(["config", "from-json", str(path), "--out", str(out)])
    error = capsys.readouterr().err
    assert status == (2 if expected else 0)
    assert {line.strip().split(": ")[0] for line in error.splitlines()[1:]} == expected
    assert out.exists() == (not expected), "nothing is written where a key is refused"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_goes_round_through_its_file_of_overrides(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.yaml"
    assert cli.main(["config", "from-json", str(path), "--out", str(out), "--partial"]) == 0
    reading = seed_json.read_partly(seed_json.load(path), base())
    config, _ = compose([f"@{out}"])
    for target, one in reading.mapped.items():
        if "." in target:
            assert at(config, target) == one.value, target
    assert config == build(RunConfig, seed_json.applied(base(), reading.mapped))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_key_of_an_example_is_accounted_for(path: Path) -> None:
    document = seed_json.load(path)
    reading = read(document)
    done = {name for one in reading.mapped.values() for name in one.keys} | reading.idle.keys() | reading.refused.keys()
    for name, _ in seed_json._flat(document, ""):
        assert any(one == name or one.startswith(f"{name}[") for one in done), name


def test_the_tiny_configuration_in_its_units() -> None:
    reading = read(seed_json.load(EXAMPLES[0].parent / "tiny.json"))
    found = values(reading)
    assert found["train.tokens"] == 10_000 * 8 * 512
    assert found["train.schedule.warmup"] == 0.01
    assert found["train.schedule.peak_lr"] == 5e-4
    shape = base()["train"]["schedule"]
    assert found["train.schedule.final_lr"] == pytest.approx(5e-4 * shape["final_lr"] / shape["peak_lr"])
    assert (found["data.sequence_length"], found["model.num_nextn_predict_layers"]) == (512, 2)
    assert (found["model.n_routed_experts"], found["model.n_group"], found["model.topk_group"]) == (4, 1, 1)
    assert found["parallel.data"] == 1


@pytest.mark.parametrize(("size", "devices"), [(1, 1), (4, 1), (2, 4), (8, 1)])
def test_a_micro_batch_in_sequences(size: int, devices: int) -> None:
    found = values(
        read({"training": {"micro_batch_size": size}, "distributed": {"data_parallel_size": devices}})
    )  # the batch of conf is 8
    assert found["train.micro_batch"] == size


def test_rules_name_keys_that_exist_or_values_that_mean_off() -> None:
    for name, rule in RULES.items():
        if isinstance(rule, To):
            assert rule.off or all(built(target) for target in rule.targets), name


OFF = {name: rule for name, rule in RULES.items() if isinstance(rule, Off)}


@pytest.mark.parametrize("name", OFF)
def test_what_is_not_built_is_taken_if_it_is_off_and_refused_if_not(name: str) -> None:
    for value in OFF[name].values:
        reading = read(nested({name: value}))
        assert not reading.refused and not reading.mapped and name in reading.idle
    reading = read(nested({name: "something else"}))
    assert reading.refused == {name: OFF[name].reason} and not reading.mapped


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_that_is_not_enabled_is_taken_whole(name: str) -> None:
    assert name in read(nested({f"{name}.enabled": False, f"{name}.threshold": 0.8})).idle
    assert read(nested({f"{name}.enabled": True})).refused == {name: BLOCKS[name]}


def test_true_is_not_one() -> None:
    assert "distributed.tensor_parallel_size" in read({"distributed": {"tensor_parallel_size": True}}).refused
    assert "distributed.zero_offload" in read({"distributed": {"zero_offload": 0}}).refused


def test_a_whole_file_of_the_layout_maps_without_a_refusal() -> None:
    told = {name: rule.values[0] for name, rule in RULES.items() if isinstance(rule, Off)}
    told |= {name: rule.off[0] for name, rule in RULES.items() if isinstance(rule, To) and rule.off}
    told |= {name: "any" for name, rule in RULES.items() if isinstance(rule, Idle)}
    told |= {
        "seed": 42,
        "model.num_layers": 4,
        "model.vocab_size": 4096,
        "model.norm_eps": 1e-6,
        "model.init_method_std": 0.02,
        "model.mla.d_model": 128,
        "model.mla.d_latent": 32,
        "model.mla.num_heads": 4,
        "model.mla.num_kv_heads": 4,
        "model.mla.max_context_length": 512,
        "model.mla.rope_theta": 10000.0,
        "model.moe.num_experts": 8,
        "model.moe.num_experts_per_token": 2,
        "model.moe.n_group": 2,
        "model.moe.topk_group": 1,
        "model.moe.expert_intermediate_size": 256,
        "model.moe.expert_dim": 256,
        "model.moe.num_shared_experts": 1,
        "model.moe.shared_intermediate_size": 256,
        "model.moe.use_aux_loss_free": False,
        "training.seq_length": 512,
        "training.global_batch_size": 128,
        "training.micro_batch_size": 16,
        "training.gradient_accumulation_steps": 8,
        "training.total_training_tokens": 65_536_000,
        "training.train_steps": 1000,
        "training.tokens_per_parameter_ratio": 20.0,
        "training.learning_rate": 1e-3,
        "training.min_learning_rate": 1e-4,
        "training.lr_warmup_steps": 100,
        "training.lr_decay_style": "cosine",
        "training.weight_decay": 0.1,
        "training.grad_clip": 1.0,
        "training.adam_beta1": 0.9,
        "training.adam_beta2": 0.95,
        "training.adam_eps": 1e-8,
        "training.use_bf16": False,
        "training.use_fp8": False,
        "training.use_mtp": False,
        "training.mtp_tokens": 1,
        "training.num_predict_tokens": 1,
        "training.gradient_checkpointing": True,
        "training.eval_interval": 100,
        "training.save_interval": 250,
        "training.log_interval": 10,
        "data.dataset_name": "local",
        "data.dataset_version": None,
        "data.sources": [{"name": "source", "weight": 0.5, "description": "code"}, {"name": "readme", "weight": 0.5}],
        "data.preprocessing.shuffle_seed": 42,
        "distributed.data_parallel_size": 1,
        "checkpointing.save_interval": 250,
        "checkpointing.save_total_limit": 3,
        "logging.log_interval": 10,
        "validation.eval_interval": 100,
        "validation.eval_samples": 100,
        "_comment": "a note",
        "model._comment_size": "another",
    }
    assert {name for name in RULES} <= set(told), "every key of the table is tried"
    reading = read(nested(told))
    assert reading.refused == {}
    found = values(reading)
    assert found["train.schedule.constant"] == found["train.schedule.warmup"] == 0.1
    assert (found["train.schedule.cosine"], found["train.schedule.tail_lr"]) == (1.0, 1e-4)
    assert (found["model.num_nextn_predict_layers"], found["train.remat"]) == (0, "full")
    assert (found["train.loss.bias_update_speed"], found["precision"]) == (0.0, "fp32")
    assert (found["data.domains.source.weight"], found["train.checkpoint.keep"]) == (0.5, 3)
    config = build(RunConfig, seed_json.applied(base(), reading.mapped))
    assert config.train.steps(config.data.sequence_length) == 1000


@pytest.mark.parametrize(
    ("told", "key", "words"),
    [
        (
            {"model.moe.num_experts": 6, "model.moe.n_group": 4},
            "model.moe.num_experts",
            "6 experts do not split into 4",
        ),
        ({"model.moe.num_experts_per_token": 99}, "model.moe.num_experts_per_token", "above the"),
        ({"training.seq_length": 4096}, "training.seq_length", "above model.max_position_embeddings 1024"),
        ({"model.vocab_size": 100}, "model.vocab_size", "do not fit"),
        ({"model.num_layers": "4"}, "model.num_layers", "expected int, got str '4'"),
        ({"training.weight_decay": -1.0}, "training.weight_decay", "below the smallest allowed"),
        (
            {"training.global_batch_size": 9},
            "training.global_batch_size",
            "a multiple of 8, or parallel.data=1",
        ),
        ({"training.micro_batch_size": 3}, "training.micro_batch_size", "do not split by 3"),
        ({"training.micro_batch_size": 0}, "training.micro_batch_size", "do not split by 0"),
        (
            {"training.micro_batch_size": 4, "training.gradient_accumulation_steps": 4},
            "training.gradient_accumulation_steps",
            "are not a batch of 8",
        ),
        (
            {"training.train_steps": 10, "training.total_training_tokens": 10**6},
            "training.train_steps",
            "10 steps of 2048 tokens are 20480 tokens, but training.total_training_tokens says 1000000",
        ),
        ({"training.tokens_per_parameter_ratio": 20}, "training.tokens_per_parameter_ratio", "give the budget itself"),
        ({"training.lr_decay_style": "linear"}, "training.lr_decay_style", "write cosine"),
        ({"training.lr_warmup_steps": 10**6}, "training.lr_warmup_steps", "above the largest allowed"),
        ({"training.lr_warmup_steps": 2.5}, "training.lr_warmup_steps", "expected int, got 2.5"),
        ({"training.use_bf16": 1}, "training.use_bf16", "expected bool, got 1"),
        ({"model.mla.num_kv_heads": 2}, "model.mla.num_kv_heads", "must be 4"),
        ({"model.moe.shared_intermediate_size": 1}, "model.moe.shared_intermediate_size", "must be 128"),
        (
            {"training.log_interval": 10, "logging.log_interval": 20},
            "logging.log_interval",
            "training.log_interval says 10",
        ),
        ({"training.mtp_tokens": 1, "training.num_predict_tokens": 2}, "training.num_predict_tokens", "says 2, but"),
        ({"distributed.data_parallel_size": -1}, "distributed.data_parallel_size", "say how many"),
        ({"model.moe.num_expert": 4}, "model.moe.num_expert", "did you mean 'model.moe.num_experts'?"),
        ({"optimiser": {}}, "optimiser", "unknown key"),
        ({"model": 3}, "model", "expected an object with keys, got 3"),
        ({"model.mla": None}, "model.mla", "expected an object with keys, got null"),
        ({"data.sources": 3}, "data.sources", "expected a list"),
        ({"data.sources": [{"name": "source", "subset": "x"}]}, "data.sources[0].subset", "made of packages"),
    ],
)
def test_a_conflict_is_refused_under_the_name_in_the_json(told: dict[str, Any], key: str, words: str) -> None:
    reading = read(nested(told))
    assert list(reading.refused) == [key]
    assert words in reading.refused[key]


def test_what_depends_on_a_refused_key_is_refused_with_it() -> None:
    reading = read(nested({"training.micro_batch_size": 2, "distributed.data_parallel_size": -1}))
    assert reading.refused["training.micro_batch_size"] == "it depends on a key that is refused"


def test_what_is_left_is_read_without_the_refused_keys() -> None:
    document = nested({"training.seq_length": 4096, "training.train_steps": 10})
    assert values(seed_json.read_partly(document, base()))["train.tokens"] == 10 * 8 * 256
    assert list(seed_json.read_partly(document, base()).refused) == ["training.seq_length"]


def test_a_longer_sequence_names_two_ways_on_and_both_lead_there() -> None:
    told = {"training.seq_length": 2048}
    refused = read(nested(told)).refused["training.seq_length"]
    assert refused.endswith("add model.mla.max_context_length, or put `model=small` behind the file")
    assert not read(nested({**told, "model.mla.max_context_length": 2048})).refused
    assert not seed_json.read(nested(told), compose(["model=small"])[1]).refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected an object"),
        ('{"seed": 1, "seed": 2}', "the key 'seed' is there twice"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"x.json: {words}|x.json.*{words}"):
        seed_json.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        seed_json.load(tmp_path / "none.json")


def test_comments_are_left_out_and_addresses_stay(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"output_dir": "s3://runs/\\"x\\"", // one\n "seed": 3} // two')
    assert seed_json.load(path) == {"output_dir": 's3://runs/"x"', "seed": 3}


def test_overrides_before_the_json_come_first_and_give_way(tmp_path: Path) -> None:
    path, out = tmp_path / "x.json", tmp_path / "out.yaml"
    path.write_text(json.dumps({"model": {"num_layers": 5}, "training": {"train_steps": 3}}))
    assert (
        cli.main(["config", "from-json", str(path), "--out", str(out), "profile=ci", "model.num_hidden_layers=2"]) == 0
    )
    config, _ = compose([f"@{out}", "train.seed=9"])
    assert (config.profile.name, config.model.num_hidden_layers, config.train.seed) == ("ci", 5, 9)
    assert config.train.tokens == 3 * 16 * 64, "a step is that of the overrides before"


def test_the_file_is_printed_without_out_and_says_what_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "from-json", str(EXAMPLES[0].parent / "tiny.json")]) == 0
    printed = capsys.readouterr().out
    assert "- train.tokens=40960000  # training.train_steps: 10000 steps of 4096 tokens\n" in printed
    assert "# not said, as in conf: vocab_size=2048" in printed
    assert "tie_word_embeddings=false" in printed.replace("\n#   ", " ") and "False" not in printed


def test_a_mistyped_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "from-josn", "x.json"]) == 2
    assert "did you mean 'from-json'?" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "from-json", str(EXAMPLES[0].parent / "tiny.json"), "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}: cannot be written" in capsys.readouterr().err


def test_pipelines_take_a_file_of_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- train.seed=5  # mine\n")
    assert parse(shlex.split(f"@{path} profile=ci")).overrides == (f"@{path}", "profile=ci")
    assert compose([f"@{path}", "profile=ci"], phase=2)[0].train.seed == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: 1", "is not a list of overrides"),
        ("- [1]", "is not a list of overrides"),
        ("- '@other.yaml'", "is not a list of overrides"),
        ("- 'a", "is not valid YAML"),
        ("- train.sed=1", "did you mean 'train.seed'?"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_overrides_is_one_sentence(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        compose([f"@{path}"])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_every_rule_that_is_derived_is_derived() -> None:
    """A key of the table that no conversion looks at would be refused as if it depended on another."""
    for name in (name for name, rule in RULES.items() if isinstance(rule, Derived)):
        reading = read(nested({name: "x"}))
        assert reading.refused.get(name) != "it depends on a key that is refused", name
