"""How a model is trained: budget, batch, optimizer, schedule, losses, checkpoints (DeepSeek-V3 report 4.2)."""

from dataclasses import dataclass
from typing import Literal

from dsv3lab.config.build import ConfigError, within


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a decay mask and global-norm clipping."""

    b1: float = within(0.0, 1.0, doc="first-moment decay [report 4.2]")
    b2: float = within(0.0, 1.0, doc="second-moment decay [report 4.2]")
    eps: float = within(0.0, doc="Adam epsilon (not published; chosen)")
    weight_decay: float = within(0.0, doc="decoupled decay, on matrices only [report 4.2]")
    clip_norm: float = within(0.0, doc="largest global gradient norm [report 4.2]")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Warm-up, constant, cosine, constant: the shape of the report's schedule, in fractions of the budget."""

    peak_lr: float = within(0.0, doc="learning rate after warm-up [report 4.2]")
    final_lr: float = within(0.0, doc="learning rate at the end of the cosine [report 4.2]")
    tail_lr: float = within(0.0, doc="learning rate of the last constant stretch [report 4.2]")
    warmup: float = within(0.0, 1.0, unit="of the budget", doc="end of the linear warm-up [report 4.2]")
    constant: float = within(
        0.0, 1.0, unit="of the budget", doc="end of the constant stretch, start of the cosine [report 4.2]"
    )
    cosine: float = within(0.0, 1.0, unit="of the budget", doc="end of the cosine, start of final_lr [report 4.2]")
    tail: float = within(0.0, 1.0, unit="of the budget", doc="start of tail_lr [report 4.2]")

    def __post_init__(self) -> None:
        if not self.warmup <= self.constant <= self.cosine <= self.tail:
            raise ConfigError("schedule: warmup <= constant <= cosine <= tail must hold")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms beside the next-token loss, and how the vocabulary loss is chunked."""

    mtp_weight: float = within(0.0, doc="weight of the MTP loss, lambda [report 2.2, Eq. 25, 4.2]")
    balance_alpha: float = within(
        0.0, doc="weight of the sequence-wise balance loss, alpha [report 2.1.2, Eq. 17, 4.2]"
    )
    bias_update_speed: float = within(0.0, doc="step of the router-bias update, gamma [report 2.1.2, 4.2]")
    vocab_chunk: int = within(1, unit="tokens", doc="tokens whose logits exist at once")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    interval: int = within(1, unit="steps", doc="steps between checkpoints")
    keep: int = within(1, doc="newest checkpoints kept")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, ended by a token budget and never by a clock."""

    seed: int = within(0, doc="seed of the initialisation")
    tokens: int = within(1, unit="tokens", doc="budget: targets of the next-token loss [report 4.2]")
    batch_size: int = within(1, unit="sequences", doc="sequences in one optimizer step [report 4.2]")
    micro_batches: int = within(1, doc="gradient accumulation: micro-batches in one step")
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    loss: LossConfig
    checkpoint: CheckpointConfig
    log_interval: int = within(1, unit="steps", doc="steps between progress lines and metric points")
    eval_interval: int = within(1, unit="steps", doc="steps between validation perplexities")
    eval_windows: int = within(1, unit="windows", doc="validation windows used at the interval")
    remat: Literal["none", "full"]
    """What the backward pass computes again instead of keeping: nothing, or every block (the report: norms and
    up-projections only) [report 3.2.3]."""
    scan_layers: bool
    """Whether the layers of a stack run in one compiled loop; unrolled, they compile longer and may run faster."""

    def __post_init__(self) -> None:
        if self.batch_size % self.micro_batches:
            raise ConfigError(
                f"micro_batches: {self.batch_size} sequences do not split into {self.micro_batches} equal parts"
            )

    def steps(self, sequence_length: int) -> int:
        """Optimizer steps that spend the token budget, rounded up."""
        return -(-self.tokens // (self.batch_size * sequence_length))


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What the final evaluation covers."""

    every: int = within(1, unit="documents", doc="one held-out document of so many, by package and size")
    batch_size: int = within(1, unit="windows", doc="windows evaluated at once")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Parts that phase 1 looks at on their own: balance methods side by side, and one expert layer against another."""

    batch_size: int = within(1, unit="sequences", doc="batch of each balance method")
    balance_alpha: float = within(0.0, doc="alpha of the method with the auxiliary loss [report Eq. 17]")
    bias_update_speed: float = within(0.0, doc="gamma of the method with the bias update [report 2.1.2]")
    bias_scale: float = within(0.0, doc="standard deviation of the random biases under which the selection is checked")
    checked_tokens: int = within(1, unit="tokens", doc="tokens whose experts are computed a second time, in NumPy")
    layer_width: int = within(1, doc="hidden size of the expert layer that is timed")
    layer_inner: int = within(1, doc="inner width of each of its experts")
    layer_experts: int = within(1, doc="its routed experts")
    layer_top: int = within(1, doc="experts of each token")


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Number formats of the computation."""

    compute: Literal["float32"]
    """Of weights, activations and products [report 3.3]."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The device mesh."""

    data: int = within(1, unit="devices", doc="data-parallel ways [report 3.2]")
    simulated: bool
    """Whether the devices are simulated on the CPU."""
