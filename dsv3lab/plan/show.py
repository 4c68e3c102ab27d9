"""`dsv3lab model show|list`: what a model configuration is made of and what one token of it costs."""

import argparse
import dataclasses
import json
from typing import Any

import yaml

from dsv3lab.config import CONF, ModelConfig, config
from dsv3lab.config.build import ConfigError
from dsv3lab.plan import count
from dsv3lab.plan.shapes import tensors


def main(argv: list[str]) -> int:
    """`dsv3lab model`: print one configuration, or a line for each."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab model", description="What a model is made of, and what one token costs."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="parts, shapes, parameters, FLOPs and cache of one model")
    show.add_argument("name", help="of conf/model, e.g. v3; `dsv3lab model list` lists them")
    show.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. num_hidden_layers=4 q_lora_rank=null")
    listed = verbs.add_parser("list", help="one line for each model of conf/model")
    for one in (show, listed):
        one.add_argument("--sequence-length", type=_positive, default=4096, metavar="TOKENS", help="default: 4096")
        one.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if args.verb == "list":
        everything = {path.stem: config(path.stem) for path in sorted((CONF / "model").glob("*.yaml"))}
        rows = {name: summary(one, sequence_length=args.sequence_length) for name, one in everything.items()}
        ordered = dict(sorted(rows.items(), key=lambda row: row[1]["parameters"]))
        print(json.dumps(ordered, indent=2) if args.json else table(ordered))
        return 0
    chosen = config(args.name, **_changes(args.overrides))
    facts = summary(chosen, sequence_length=args.sequence_length)
    if args.json:
        arrays = [dataclasses.asdict(tensor) | {"parameters": tensor.parameters} for tensor in tensors(chosen)]
        print(json.dumps({"config": dataclasses.asdict(chosen), **facts, "tensors": arrays}, indent=2))
    else:
        print(page(args.name, chosen, facts=facts))
    return 0


def summary(model: ModelConfig, *, sequence_length: int) -> dict[str, Any]:
    """The figures of one configuration, each under a name that says its unit and convention."""
    counted = count.parameters(model)
    options: dict[str, Any] = {"sequence_length": sequence_length, "causal": True}
    return {
        "parameters": counted.total,
        "activated_parameters": counted.activated,
        "mtp_parameters": counted.mtp,
        "parameters_by_part": counted.by_part,
        "sequence_length": sequence_length,
        "forward_flops_per_token": count.flops_per_token(model, **options, mtp=False, backward=False),
        "forward_flops_per_token_all_keys": count.flops_per_token(
            model, **options | {"causal": False}, mtp=False, backward=False
        ),
        "training_flops_per_token": count.flops_per_token(model, **options, mtp=True),
        "kv_bytes_per_token_bf16": count.kv_bytes_per_token(model, bytes_per_element=2),
        "mha_kv_bytes_per_token_bf16": count.kv_bytes_per_token_mha(model, bytes_per_element=2),
    }


def page(name: str, model: ModelConfig, *, facts: dict[str, Any]) -> str:
    """The text of `dsv3lab model show`."""
    dense = [str(layer) for layer, moe in enumerate(model.moe_layers) if not moe]
    lines = [
        f"{name}: {model.num_hidden_layers} layers, {model.num_dense_layers} of them dense"
        + (f" ({_ranges(dense)})" if dense else "")
        + f", MTP depth {model.num_nextn_predict_layers}",
        "",
        f"{'part':<16} {'array':<16} {'shape':<22} {'copies':>6} {'parameters':>20}",
    ]
    for part in (*facts["parameters_by_part"], "mtp"):
        rows = [tensor for tensor in tensors(model) if tensor.part == part]
        for row in rows:
            shape = " x ".join(f"{size}" for size in row.shape)
            lines.append(f"{part:<16} {row.name:<16} {shape:<22} {row.copies:>6} {row.parameters:>20,}")
        if len(rows) > 1:
            lines.append(f"{'':<16} {'together':<46} {sum(row.parameters for row in rows):>20,}")
    length = facts["sequence_length"]
    lines += [
        "",
        f"{'parameters of the main model':<62} {facts['parameters']:>20,}",
        f"{'  activated by a token (with the head, without the embedding)':<62} {facts['activated_parameters']:>20,}",
        f"{'  of the MTP modules, embedding and head not counted again':<62} {facts['mtp_parameters']:>20,}",
        f"{'forward FLOPs of a token, without MTP':<62} {facts['forward_flops_per_token']:>20,}",
        f"{'  as the traced model multiplies: each query with all s keys':<62} {facts['forward_flops_per_token_all_keys']:>20,}",
        f"{'training FLOPs of a token, with MTP':<62} {facts['training_flops_per_token']:>20,}",
        f"{'key-value cache of a token, bytes in bf16':<62} {facts['kv_bytes_per_token_bf16']:>20,}",
        f"{'  multi-head attention with the same heads':<62} {facts['mha_kv_bytes_per_token_bf16']:>20,}",
        "",
        f"FLOPs: products only, 2 for each multiply-add, backward twice the forward; sequences of {length:,} tokens, in which",
        "a query sees (s + 1) / 2 keys on average. All in closed form. Tests count the forward pass of every configuration of",
        "conf/model in the traced program: over all keys, with MTP, the same integers; of one small model the gradient, too.",
    ]
    return "\n".join(lines)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each model, smallest first."""
    lines = [f"{'model':<10} {'parameters':>10} {'activated':>10} {'training FLOPs/token':>21} {'KV bytes/token':>15}"]
    for name, facts in rows.items():
        sizes = (f"{facts[key] / 1e9:>9.3f}B" for key in ("parameters", "activated_parameters"))
        flops = f"{facts['training_flops_per_token'] / 1e9:>15,.3f} GFLOP"
        lines.append(" ".join([f"{name:<10}", *sizes, flops, f"{facts['kv_bytes_per_token_bf16']:>15,}"]))
    return "\n".join([*lines, "", "`dsv3lab model show NAME` prints the parts, and the conventions of the figures."])


def _changes(overrides: list[str]) -> dict[str, Any]:
    """`key=value` words as a mapping, values read as YAML."""
    changes: dict[str, Any] = {}
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{word}' is not of the form key=value")
        changes[key] = yaml.safe_load(value)
    return changes


def _ranges(layers: list[str]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(layers)}"


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is not a positive number of tokens")
    return int(word)
