"""The keys of the seeds' JSON layout and what each is here.

The seeds show parts of the layout (`model`, `training`, `data`, `distributed`); its other keys are those of the public
project that seed 002 sums up. What needs more than one key (batch, budget, schedule) is in `seed_derive.py`.
"""

from dataclasses import dataclass
from typing import Any

NOT_BUILT = "is not built yet"


@dataclass(frozen=True)
class To:
    """A key whose value goes to `targets` as it is; `off` is what it may be while there is no such target."""

    targets: tuple[str, ...]
    off: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Off:
    """A key without a target: `values` mean what is done here anyway, every other one is refused with `reason`."""

    values: tuple[Any, ...]
    reason: str


@dataclass(frozen=True)
class Idle:
    """A key that changes no number; `reason` says why."""

    reason: str


@dataclass(frozen=True)
class Derived:
    """A key that is converted together with others."""


Rule = To | Off | Idle | Derived

RULES: dict[str, Rule] = {
    "experiment_name": Idle("runs are named by their time"),
    "output_dir": Idle("outputs lie in runs/, or where DSV3LAB_RUNS says"),
    "seed": To(("train.seed",)),
    # model
    "model.num_layers": To(("model.num_hidden_layers",)),
    "model.vocab_size": To(("model.vocab_size",)),
    "model.norm_type": Off(("rmsnorm",), "every norm is an RMSNorm"),
    "model.norm_eps": To(("model.rms_norm_eps", "model.latent_norm_eps")),
    "model.tie_word_embeddings": To(("model.tie_word_embeddings",), off=(False,)),
    "model.init_method_std": To(("model.initializer_range", "model.embedding_initializer_range")),
    "model.dense_layer_interval": To(("model.dense_layer_interval",), off=(None,)),
    "model.mla.d_model": To(("model.hidden_size",)),
    "model.mla.d_latent": To(("model.kv_lora_rank",)),
    "model.mla.num_heads": To(("model.num_attention_heads",)),
    "model.mla.num_kv_heads": Derived(),
    "model.mla.max_context_length": To(("model.max_position_embeddings",)),
    "model.mla.rope_theta": To(("model.rope_theta",)),
    "model.mla.use_rope": Off((True,), "positions are always rotary"),
    "model.mla.use_fp8_kv": Off((False,), f"a cache, and so one in FP8, {NOT_BUILT}"),
    "model.mla.use_flash_mla": Off((False,), "attention is one program for XLA; FlashMLA's kernels are not used"),
    "model.mla.flash_mla_backend": Idle("there is one attention, see model.mla.use_flash_mla"),
    "model.mla.fallback_to_dense": Idle("there is one attention, see model.mla.use_flash_mla"),
    "model.mla.sliding_window": Off((None,), "attention is causal over the whole window"),
    "model.mla.attn_dropout": Off((0,), f"dropout of attention weights {NOT_BUILT}"),
    "model.moe.num_experts": Derived(),
    "model.moe.num_experts_per_token": To(("model.num_experts_per_tok",)),
    "model.moe.n_group": To(("model.n_group",)),
    "model.moe.topk_group": To(("model.topk_group",)),
    "model.moe.expert_intermediate_size": To(("model.moe_intermediate_size",)),
    "model.moe.expert_dim": To(("model.moe_intermediate_size",)),
    "model.moe.num_shared_experts": To(("model.n_shared_experts",)),
    "model.moe.shared_intermediate_size": Derived(),
    "model.moe.dropout": Off((0,), f"dropout in experts {NOT_BUILT}"),
    "model.moe.router_aux_loss_weight": To(("train.loss.switch_alpha",), off=(0,)),
    "model.moe.use_aux_loss_free": Derived(),
    "model.moe.balance_loss_type": Off((None, "switch"), "model.moe.router_aux_loss_weight is of the Switch loss"),
    "model.moe.router_temperature": Off((1,), "scores are not divided by a temperature"),
    "model.moe.router_noise_std": Off((0,), "routers have no noise"),
    "model.moe.router_bias_decay": Off((None, 1), "the bias update of the report (2.1.2) has no decay"),
    "model.moe.capacity_factor": Off((None,), "no token is dropped (report 2.1.2), so experts have no capacity"),
    "model.moe.min_expert_capacity": Off((None,), "no token is dropped (report 2.1.2), so experts have no capacity"),
    "model.moe.use_deep_ep": Off((False,), f"expert parallelism, which DeepEP serves, {NOT_BUILT}"),
    "model.moe.deep_ep_fp8": Off((False,), f"expert parallelism, which DeepEP serves, {NOT_BUILT}"),
    "model.moe.deep_ep_async": Off((False,), f"expert parallelism, which DeepEP serves, {NOT_BUILT}"),
    # training
    "training.seq_length": To(("data.sequence_length",)),
    "training.global_batch_size": To(("train.batch_size",)),
    "training.micro_batch_size": Derived(),
    "training.gradient_accumulation_steps": Derived(),
    "training.total_training_tokens": Derived(),
    "training.train_steps": Derived(),
    "training.tokens_per_parameter_ratio": Derived(),
    "training.learning_rate": Derived(),
    "training.min_learning_rate": To(("train.schedule.final_lr", "train.schedule.tail_lr")),
    "training.lr_warmup_steps": Derived(),
    "training.lr_decay_style": Derived(),
    "training.weight_decay": To(("train.optimizer.weight_decay",)),
    "training.grad_clip": To(("train.optimizer.clip_norm",)),
    "training.optimizer": Off(("adamw",), "the optimizer is AdamW (report 4.2)"),
    "training.adam_beta1": To(("train.optimizer.b1",)),
    "training.adam_beta2": To(("train.optimizer.b2",)),
    "training.adam_eps": To(("train.optimizer.eps",)),
    "training.use_fp16": Off((False,), "float16 is not among the formats of the report (3.3)"),
    "training.use_bf16": Derived(),
    "training.use_fp8": Derived(),
    "training.use_mtp": Derived(),
    "training.mtp_tokens": Derived(),
    "training.num_predict_tokens": Derived(),
    "training.gradient_checkpointing": Derived(),
    "training.memory_efficient_attention": Off((False,), "attention is one program for XLA"),
    "training.device": Off((None, "auto"), "JAX takes the device that it finds, or the one that JAX_PLATFORMS names"),
    "training.eval_interval": To(("train.eval_interval",)),
    "training.save_interval": To(("train.checkpoint.interval",)),
    "training.log_interval": To(("train.log_interval",)),
    # data
    "data.dataset_name": Derived(),
    "data.dataset_version": Derived(),
    "data.sources": Derived(),
    "data.cache_dir": Idle("prepared data lies in runs/data"),
    "data.chinchilla_tokens": Off((None,), "the budget is training.total_training_tokens or training.train_steps"),
    "data.preprocessing.shuffle": Off((True,), "windows are always shuffled"),
    "data.preprocessing.shuffle_seed": To(("data.shuffle_seed",)),
    "data.preprocessing.streaming": Off((False,), "a corpus is prepared before the training begins"),
    "data.preprocessing.buffer_size": Idle("a corpus is prepared before the training begins"),
    "data.preprocessing.prefetch_factor": Idle("a batch is a function of its step; nothing is loaded by workers"),
    "data.preprocessing.num_workers": Idle("a batch is a function of its step; nothing is loaded by workers"),
    # distributed
    **{
        f"distributed.{name}_parallel_size": Off((1,), f"{name} parallelism {NOT_BUILT}")
        for name in ("tensor", "pipeline", "expert")
    },
    "distributed.data_parallel_size": Derived(),
    "distributed.zero_stage": Off((0,), f"sharding of the optimizer's state {NOT_BUILT}"),
    "distributed.zero_offload": Off((False,), f"keeping the optimizer's state on the host {NOT_BUILT}"),
    "distributed.backend": Off((None, "none"), "communication is XLA's"),
    "distributed.launcher": Off((None, "none", "single_process"), f"a launcher of several processes {NOT_BUILT}"),
    "distributed.overlap_grad_reduce": Off((False,), "XLA schedules communication"),
    "distributed.overlap_param_gather": Off((False,), "XLA schedules communication"),
    # beside the four
    "checkpointing.save_interval": To(("train.checkpoint.interval",)),
    "checkpointing.save_total_limit": To(("train.checkpoint.keep",)),
    "checkpointing.save_optimizer_states": Off((True,), "checkpoints always hold the whole state"),
    "checkpointing.resume_from_checkpoint": Off((None,), "a training goes on by itself from its last checkpoint"),
    "checkpointing.checkpoint_format": Off((None, "orbax"), "checkpoints are Orbax's with a SHA-256 manifest"),
    "logging.log_interval": To(("train.log_interval",)),
    "validation.enabled": Off((True,), "every training is validated"),
    "validation.eval_interval": To(("train.eval_interval",)),
    "validation.eval_samples": To(("train.eval_windows",)),
    "validation.metrics": Idle("loss and perplexity are always logged"),
}
"""JSON path -> what is done with it."""

_FILTERS = "documents are chosen by their size alone (data.min_document_bytes, data.max_document_bytes)"
BLOCKS = {
    "data.pipeline": _FILTERS,
    "data.deduplication": _FILTERS,
    "data.quality_filter": _FILTERS,
    "data.heuristic_filters": _FILTERS,
    "data.ranking_filter": _FILTERS,
    "data.sanitization": _FILTERS,
    "data.domain_mixer": "the weights of the mixture are fixed (data.domains)",
    "distributed.deepspeed": "DeepSpeed is a program for PyTorch; the training here is JAX's",
    "distributed.slurm": f"a launcher on a cluster {NOT_BUILT}",
    "logging.wandb": "trackers are chosen apart from the training: tracking.also=[wandb]",
    "logging.tensorboard": "trackers are chosen apart from the training: tracking.also=[tensorboard]",
}
"""Groups of keys that are taken whole: nothing is done for them if they say `"enabled": false`, else they are refused."""
