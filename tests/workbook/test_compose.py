"""Composition: real groups, one sentence for each mistake, and no state left behind."""

import shutil
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from dsv3lab.config import CONF, ConfigError
from dsv3lab.workbook import compose
from tests.workbook import samples


def test_phase_sets_stages_and_gates() -> None:
    for phase in (1, 2, 3, 4):
        config, resolved = samples.configuration(phase)
        assert config.phase.number == phase == resolved["phase"]["number"]
        assert config.phase.gates


def test_overrides_win_and_can_be_repeated() -> None:
    first, _ = samples.configuration(2, "train.tokens=4096", "profile=ci")
    second, _ = samples.configuration(2)
    assert (first.train.tokens, first.profile.name, first.profile.promotes) == (4096, "ci", False)
    assert second.train.tokens != 4096 and second.profile.name == "default"


def test_dump_and_load_are_inverse(tmp_path: Path) -> None:
    config, resolved = samples.configuration(2, "train.optimizer.eps=1e-9")
    path = tmp_path / "config.resolved.yaml"
    path.write_text(compose.dump(resolved))
    assert compose.load(path) == config
    assert yaml.safe_load(path.read_text()) == resolved


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.tokenz=5", ["train.tokenz", "did you mean 'train.tokens'"]),
        ("model=nan", ["'model=nan'", "did you mean 'nano'"]),
        ("modell=nano", ["modell", "did you mean 'model'"]),
        ("model.hidden_size.x=1", ["model.hidden_size", "is a value"]),
        ("+train.surprise=1", ["train.surprise", "unknown key"]),
        ("~train.seed", ["train.seed", "missing key"]),
        ("train.tokens=many", ["train.tokens", "expected int"]),
        ("train.tokens=-1", ["train.tokens", "below the smallest"]),
        ("train.seed=1,2", ["train.seed=1,2", "sweep"]),
        ("train.seed=[1", ["train.seed=[1", "cannot be read"]),
        ("train.seed", ["train.seed", "cannot be read"]),
        ("hydra.run.dir=elsewhere", ["hydra.run.dir", "no effect"]),
        ("phase=phase3", ["phase=phase3", "leave the override out"]),
        ("train.tokens=???", ["train.tokens"]),
        ("train.tokens=${train.seeds}", ["train.seeds"]),
    ],
)
def test_each_mistake_is_one_sentence(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        samples.configuration(2, override)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_right_group_beside_a_wrong_key() -> None:
    with pytest.raises(ConfigError, match="did you mean 'train.tokens'"):
        samples.configuration(2, "profile=ci", "train.token=5")


def test_hydra_of_the_notebook_is_given_back() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        compose.compose(phase=1)
        with pytest.raises(ConfigError):
            compose.compose(["model=nan"], phase=1)
        assert GlobalHydra.instance().hydra is mine
    compose.compose(phase=1)
    assert not GlobalHydra.instance().is_initialized()


def test_what_departs_from_the_committed_gates_is_named_key_by_key() -> None:
    config, _ = samples.configuration(1, "train.seed=5")
    assert compose.overridden(config) == []
    first, second, *_ = config.phase.gates
    changed, _ = compose.compose(
        [
            f"phase.gates.{first}.threshold=99",
            f"~phase.gates.{second}",
            "phase.stages.mla.notebook=other.ipynb",
            "phase.requires_phase=3",
            "profile.bench_repeats=1",
            "eval.every=50",
            "study.checked_tokens=1",
            "parallel.data=1",
            "train.checkpoint.interval=99999",
            "debug=true",
        ],
        phase=1,
    )
    repeats, stage = config.profile.bench_repeats, config.phase.stages["mla"]
    assert compose.overridden(changed) == [
        f"profile.bench_repeats is 1 on the command line, {repeats} in conf/profile/default.yaml",
        *(
            f"{key} is {new} on the command line, {old} with profile=default alone"
            for key, new, old in (
                ("debug", True, False),
                ("eval.every", 50, config.eval.every),
                ("study.checked_tokens", 1, config.study.checked_tokens),
                ("parallel.data", 1, config.parallel.data),
                ("train.checkpoint.interval", 99999, config.train.checkpoint.interval),
            )
        ),
        f"stage mla.notebook is other.ipynb on the command line, {stage.notebook} in conf/phase/phase1.yaml",
        *sorted(
            [
                f"gate {first}.threshold is 99.0 on the command line, {config.phase.gates[first].threshold} "
                "in conf/gates/phase1.yaml",
                f"gate {second} is only in conf/gates/phase1.yaml",
            ]
        ),
        "phase.requires_phase is 3 on the command line, None in conf/phase/phase1.yaml",
    ]


def test_a_profile_is_known_by_its_file() -> None:
    promoting, _ = samples.configuration(1, "profile=ci", "profile.promotes=true")
    assert compose.overridden(promoting) == [
        "profile.promotes is True on the command line, False in conf/profile/ci.yaml"
    ]
    renamed, _ = samples.configuration(1, "profile.name=mine")
    assert compose.overridden(renamed) == [
        "profile.name is mine on the command line, but there is no conf/profile/mine.yaml"
    ]


@pytest.mark.parametrize("profile", ["default", "long"])
def test_what_can_be_promoted_has_beaten_gzip_on_whole_documents(profile: str) -> None:
    config, _ = samples.configuration(2, f"profile={profile}")
    gate = config.phase.gates["train_gzip_document"]
    assert config.profile.promotes and (gate.severity, gate.op, gate.threshold) == ("block", "<", 1.0)


@pytest.mark.parametrize("profile", ["ci", "default", "long"])
def test_the_times_of_a_profile_name_stages_and_only_ever_raise_limits(profile: str) -> None:
    phases = [samples.configuration(number, f"profile={profile}")[0] for number in (1, 2, 3, 4)]
    stages = {name: config for config in phases for name in config.phase.stages}
    assert set(phases[0].profile.time_factors) <= set(stages)
    for name, config in stages.items():
        assert config.limit_s(name) >= config.phase.stages[name].limit_s
        assert config.limit_s(name) > 2 * config.expected_s(name)


# Seed 002, "Key Hyperparameters": batch, sequence length, learning rate, warm-up steps, MTP tokens.
HYPERPARAMETERS = {
    "tiny": (8, 512, 5e-4, 100, 2),
    "small": (64, 2048, 3e-4, 2000, 2),
    "large": (4096, 4096, 1.8e-4, 2000, 2),
}


@pytest.mark.parametrize("size", HYPERPARAMETERS)
def test_the_sizes_of_the_seed_train_as_its_table_says(size: str) -> None:
    config, _ = samples.configuration(2, f"train={size}", "model.max_position_embeddings=4096")
    train, length = config.train, config.data.sequence_length
    steps = train.steps(length)
    mtp = config.model.num_nextn_predict_layers
    row = (train.batch_size, length, train.schedule.peak_lr, round(train.schedule.warmup * steps), mtp)
    assert row == HYPERPARAMETERS[size]
    assert steps == (1000 if size == "tiny" else 200_000) and train.tokens == steps * train.batch_size * length
    nano = samples.configuration(2)[0].train
    assert train.optimizer == nano.optimizer and train.schedule.final_lr == pytest.approx(train.schedule.peak_lr / 10)
    assert train.schedule.tail_lr == pytest.approx(train.schedule.peak_lr / 30, rel=2e-3)


@pytest.mark.parametrize("size", ["nano", *HYPERPARAMETERS])
def test_presets_fit_every_size(size: str) -> None:
    sized = (f"train={size}", "model.max_position_embeddings=4096")
    low, _ = samples.configuration(2, *sized, "preset=low_memory")
    fast, _ = samples.configuration(2, *sized, "preset=max_speed")
    assert (low.train.micro_batch, low.train.remat) == (1, "full")
    assert (fast.train.micro_batch, fast.train.remat) == ("auto", "none")  # the whole batch of 4096 would fit nowhere
    assert low.train.loss.vocab_chunk < fast.train.loss.vocab_chunk
    assert compose.overridden(low) == [
        line for line in compose.overridden(samples.configuration(2, *sized)[0]) if "vocab" not in line
    ]


@pytest.mark.parametrize(
    ("words", "ways"),
    [
        (("train.batch_size=6",), "multiple of 8, or parallel.data=2"),
        (("train.batch_size=12", "train.batch_ramp={start: 4, until: 0.5, stairs: 2}"), "or parallel.data=4"),
    ],
)
def test_a_batch_that_devices_cannot_share_is_refused_with_a_way_out(words: tuple[str, ...], ways: str) -> None:
    with pytest.raises(ConfigError, match=r"phase 3 splits each batch over 8 devices") as error:
        compose.compose(words)
    assert ways in str(error.value)
    assert compose.compose([*words, ways.rpartition(" ")[2]])[0].train.batch_size in (6, 12)


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_training_whose_model_is_too_short_names_the_model(size: str) -> None:
    with pytest.raises(ConfigError, match=rf"model.max_position_embeddings 1024; choose model={size}, or raise it"):
        compose.compose([f"train={size}"])
    assert compose.compose([f"train={size}", f"model={size}"])[0].data.sequence_length > 1024


def test_a_mistyped_preset_is_refused_with_its_nearest_name() -> None:
    with pytest.raises(ConfigError, match="no 'low_memry' in preset; did you mean 'low_memory'"):
        samples.configuration(2, "preset=low_memry")


def test_the_smoke_test_of_the_seed_is_a_profile(tmp_path: Path) -> None:
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    shutil.copy(conf / "model" / "nano.yaml", conf / "model" / "tiny.yaml")  # whichever the model is
    config, _ = compose.compose(["profile=tiny"], phase=2, conf=conf)
    assert (config.profile.name, config.profile.promotes) == ("tiny", False)
    assert config.train == samples.configuration(2, "train=tiny")[0].train
    assert config.data.tokenizer.vocab_size == config.model.vocab_size
    assert config.precision == samples.configuration(2, "precision=bf16")[0].precision
    assert {gate.requires.profile for gate in config.phase.gates.values()} == {None, "tiny"}
    assert config.profile.bench_repeats == samples.configuration(2)[0].profile.bench_repeats
