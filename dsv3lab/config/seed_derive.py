"""What several keys of the seeds' JSON say together: batch, budget, schedule, experts, precision, prediction, domains."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3lab.config.build import nearest
from dsv3lab.config.help import keys
from dsv3lab.config.seed_keys import NOT_BUILT


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """One override and the keys of the JSON that it comes from."""

    value: Any
    keys: tuple[str, ...]
    note: str = ""
    """How the value was converted, or that it is implied."""


@dataclass(kw_only=True)
class Reading:
    """What became of every key of a JSON configuration."""

    mapped: dict[str, Mapped] = field(default_factory=dict)
    """Key of the configuration -> its new value."""
    idle: dict[str, str] = field(default_factory=dict)
    """Key of the JSON that changes nothing -> why."""
    refused: dict[str, str] = field(default_factory=dict)
    """Key of the JSON -> why it cannot be followed."""

    def set(self, target: str, value: Any, *names: str, note: str = "") -> None:
        """Map `names` to `target`, or refuse the last of them if another key has said something else."""
        before = self.mapped.get(target)
        if before is not None and before.value != value and not before.note:
            self.refused[names[-1]] = f"says {text(value)}, but {' and '.join(before.keys)} says {text(before.value)}"
        else:
            together = dict.fromkeys([*(before.keys if before else ()), *names])
            self.mapped[target] = Mapped(value=value, keys=tuple(together), note=note)


def derive(told: Mapping[str, Any], reading: Reading, base: Mapping[str, Any], *, conf: Path) -> None:
    """Map or refuse the keys of `told`, whose targets depend on other keys or are in other units.

    Args:
        told: path in the JSON -> value, of the keys with the rule `Derived`.
        reading: holds the keys with a target of their own; receives the others.
        base: the resolved configuration that the overrides will be laid over.
        conf: the folder of the config groups.
    """
    _experts(told, reading, base)
    _precision(told, reading, conf)
    for follow in (_prediction, _batch, _budget, _schedule, _devices, _corpus):
        follow(told, reading, base)


def _experts(told: Mapping[str, Any], reading: Reading, base: Mapping[str, Any]) -> None:
    name = "model.moe.num_experts"
    if name in told:
        reading.set("model.n_routed_experts", told[name], name)
        for target in ("model.n_group", "model.topk_group"):
            if target not in reading.mapped:
                reading.set(target, 1, name, note="implied: the file has no expert groups")
    name = "model.mla.num_kv_heads"
    heads = _now(reading, base, "model.num_attention_heads")
    if name in told:
        _same(name, told[name], heads, reading, "keys and values of MLA are made for every head from one latent")
    name = "model.moe.shared_intermediate_size"
    width = _now(reading, base, "model.moe_intermediate_size")
    if name in told:
        _same(name, told[name], width, reading, "a shared expert is as wide as a routed one")
    name = "model.moe.use_aux_loss_free"
    if _is(name, bool, told, reading):
        if told[name]:
            reading.idle[name] = "as it is here"
        else:
            reading.set("train.loss.bias_update_speed", 0.0, name, note="no bias update")


def _precision(told: Mapping[str, Any], reading: Reading, conf: Path) -> None:
    names = [name for name in ("training.use_bf16", "training.use_fp8") if _is(name, bool, told, reading)]
    wanted = [name for name in names if told[name]]
    if wanted:
        file = {"training.use_bf16": "bf16", "training.use_fp8": "fp8"}[wanted[-1]]
        if (conf / "precision" / f"{file}.yaml").is_file():
            reading.set("precision", file, *names)
        else:
            reading.refused[wanted[-1]] = f"conf/precision/{file}.yaml {NOT_BUILT}"
            reading.idle |= {name: "see the other" for name in names if name != wanted[-1]}
    elif names:
        reading.set("precision", "fp32", *names)
    name = "training.gradient_checkpointing"
    if _is(name, bool, told, reading):
        reading.set("train.remat", "full" if told[name] else "none", name)


def _prediction(told: Mapping[str, Any], reading: Reading, base: Mapping[str, Any]) -> None:
    """The seeds count the tokens that MTP predicts: that is its depth."""
    names = [name for name in ("training.mtp_tokens", "training.num_predict_tokens") if name in told]
    use = "training.use_mtp"
    if _is(use, bool, told, reading) and not told[use]:
        reading.set("model.num_nextn_predict_layers", 0, use)
        reading.idle |= {name: "training.use_mtp is false" for name in names}
        return
    for name in names:
        reading.set("model.num_nextn_predict_layers", told[name], name)
    if use in told and use not in reading.refused:
        reading.idle[use] = "as it is here"


def _batch(told: Mapping[str, Any], reading: Reading, base: Mapping[str, Any]) -> None:
    """A batch is micro-batch x accumulation x data-parallel devices."""
    size, parts = "training.micro_batch_size", "training.gradient_accumulation_steps"
    batch = _now(reading, base, "train.batch_size")
    devices = told.get("distributed.data_parallel_size", 1)
    names = [name for name in (size, parts) if _is(name, int, told, reading)]
    if not names or not _counts(batch, devices):
        return
    share = batch // devices
    for name in names:
        if told[name] < 1 or batch % (devices * told[name]):
            reading.refused[name] = f"{batch} sequences over {devices} x data-parallel do not split by {told[name]}"
    counts = {
        name: share // told[name] if name == size else told[name] for name in names if name not in reading.refused
    }
    for name, count in counts.items():
        parts_of = share // count
        reading.set("train.micro_batch", parts_of, name, note=f"{share} sequences of a device are {count} x {parts_of}")
    if len(set(counts.values())) > 1:
        reading.refused[parts] = f"{counts[parts]} x {told[size]} ({size}) x {devices} are not a batch of {batch}"


def _budget(told: Mapping[str, Any], reading: Reading, base: Mapping[str, Any]) -> None:
    """The budget is a count of tokens."""
    total, steps, ratio = (
        f"training.{name}" for name in ("total_training_tokens", "train_steps", "tokens_per_parameter_ratio")
    )
    a_step = _tokens_of_a_step(reading, base)
    if told.get(total) is not None:
        reading.set("train.tokens", told[total], total)
    elif total in told:
        reading.idle[total] = "not given"
    if _is(steps, int, told, reading) and a_step:
        tokens = told[steps] * a_step
        given = told.get(total)
        if given is not None and _counts(given) and -(-given // a_step) != told[steps]:
            reading.refused[steps] = (
                f"{told[steps]} steps of {a_step} tokens are {tokens} tokens, but {total} says {given}; leave one out"
            )
        elif given is None:
            reading.set("train.tokens", tokens, steps, note=f"{told[steps]} steps of {a_step} tokens")
        else:
            reading.idle[steps] = f"follows from {total}"
    if ratio in told:
        if told[ratio] is None or "train.tokens" in reading.mapped:
            reading.idle[ratio] = "the budget is given" if told[ratio] is not None else "not given"
        else:
            reading.refused[ratio] = f"give the budget itself: {total} or {steps}"


def _schedule(told: Mapping[str, Any], reading: Reading, base: Mapping[str, Any]) -> None:
    """Steps become fractions of the budget; a cosine runs from the end of the warm-up to the end."""
    rate, warm, style = (f"training.{name}" for name in ("learning_rate", "lr_warmup_steps", "lr_decay_style"))
    schedule = "train.schedule"
    if _is(rate, (int, float), told, reading):
        reading.set(f"{schedule}.peak_lr", told[rate], rate)
        for name in ("final_lr", "tail_lr"):
            if f"{schedule}.{name}" not in reading.mapped:
                shape = base["train"]["schedule"]
                scaled = float(f"{told[rate] * shape[name] / shape['peak_lr']:.12g}")
                reading.set(f"{schedule}.{name}", scaled, rate, note="implied: falls by the factor of conf")
    a_step, tokens = _tokens_of_a_step(reading, base), _now(reading, base, "train.tokens")
    if _is(warm, int, told, reading) and a_step and _counts(tokens):
        total = -(-tokens // a_step)
        reading.set(f"{schedule}.warmup", told[warm] / total, warm, note=f"{told[warm]} of {total} steps")
    if style in told:
        if told[style] != "cosine":
            reading.refused[style] = "the rate falls along a cosine (report 4.2): write cosine"
            return
        reading.set(
            f"{schedule}.constant", _now(reading, base, f"{schedule}.warmup"), style, note="from the warm-up on"
        )
        for name in ("cosine", "tail"):
            reading.set(f"{schedule}.{name}", 1.0, style, note="to the end")


def _devices(told: Mapping[str, Any], reading: Reading, base: Mapping[str, Any]) -> None:
    name = "distributed.data_parallel_size"
    if name in told and told[name] == -1:
        reading.refused[name] = "say how many devices; -1, as many as there are, would change the run with the machine"
    elif name in told:
        reading.set("parallel.data", told[name], name)


def _corpus(told: Mapping[str, Any], reading: Reading, base: Mapping[str, Any]) -> None:
    """A corpus goes by its name in conf/data, a source by its domain's."""
    corpus, domains = base["data"]["name"], base["data"]["domains"]
    for name in (name for name in ("data.dataset_name", "data.dataset_version") if name in told):
        if told[name] in (corpus, None):
            reading.idle[name] = "as it is here"
        else:
            reading.refused[name] = f"the corpus is '{corpus}' of local packages; reading {told[name]} {NOT_BUILT}"
    sources = told.get("data.sources")
    if sources is None:
        return
    if not isinstance(sources, list) or not all(isinstance(one, Mapping) for one in sources):
        reading.refused["data.sources"] = "expected a list of objects with name and weight"
        return
    for index, source in enumerate(sources):
        here, domain = f"data.sources[{index}]", source.get("name")
        if domain not in domains:
            reading.refused[f"{here} ({', '.join(source)})"] = (
                f"'{domain}' is no domain here{nearest(str(domain), domains)}"
            )
            continue
        for key, value in source.items():
            if key == "weight":
                reading.set(f"data.domains.{domain}.weight", value, f"{here}.{key}")
            elif key in ("name", "description"):
                reading.idle[f"{here}.{key}"] = "names the domain" if key == "name" else "a note"
            else:
                reading.refused[f"{here}.{key}"] = "a domain is made of packages (data.domains.<name>.packages)"


def _same(name: str, value: Any, expected: Any, reading: Reading, reason: str) -> None:
    if value == expected:
        reading.idle[name] = "as it is here"
    else:
        reading.refused[name] = f"must be {text(expected)}: {reason}"


def _is(name: str, kind: type | tuple[type, ...], told: Mapping[str, Any], reading: Reading) -> bool:
    """Whether `name` was said and is of `kind`; another kind is refused."""
    if name not in told or name in reading.refused:
        return False
    value = told[name]
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return True
    word = kind.__name__ if isinstance(kind, type) else "number"
    reading.refused[name] = f"expected {word}, got {text(value)}"
    return False


def _now(reading: Reading, base: Mapping[str, Any], target: str) -> Any:
    """The value of a key under the overrides so far."""
    if target in reading.mapped:
        return reading.mapped[target].value
    value: Any = base
    for part in target.split("."):
        value = value[part]
    return value


def _counts(*values: Any) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values)


def _tokens_of_a_step(reading: Reading, base: Mapping[str, Any]) -> int:
    """Targets in one optimizer step; 0 if batch or window are no counts (the builder says so)."""
    batch, window = _now(reading, base, "train.batch_size"), _now(reading, base, "data.sequence_length")
    return batch * window if _counts(batch, window) else 0


@functools.cache
def known() -> frozenset[str]:
    """The keys that the configuration has."""
    return frozenset(keys())


def text(value: Any) -> str:
    """A value as it stands in an override and in a sentence."""
    return value if isinstance(value, str) else json.dumps(value)
