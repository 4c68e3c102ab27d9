"""Where text comes from and how it becomes windows of tokens."""

import re
from dataclasses import dataclass
from typing import Literal

from dsv3lab.config.build import ConfigError, within


@dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """One domain of the corpus: which packages feed it and its share of the training windows."""

    weight: float = within(0.0, doc="share of the training windows, before normalisation")
    kind: Literal["source", "readme", "reference"]
    """What is read of each package: source files, the description, or documentation and docstrings."""
    packages: tuple[str, ...]
    """Distributions whose files are read."""
    validation: tuple[str, ...]
    """Packages or module families (`package` or `package/submodule`) held out for validation."""
    max_bytes: int = within(1, unit="bytes", doc="training text kept from this domain")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A byte-level BPE trained on the training split [report 4.1]."""

    vocab_size: int = within(257, unit="tokens", doc="entries, special tokens included")
    train_bytes: int = within(1, unit="bytes", doc="training text that the merges are learned from")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A corpus, its tokenizer and its windows."""

    name: str
    """Begins the name of the folder that the prepared data lies in."""
    sequence_length: int = within(
        2, unit="tokens", doc="targets of one window; a window stores one token more [report 4.2]"
    )
    min_document_bytes: int = within(0, unit="bytes", doc="shorter documents are left out")
    max_document_bytes: int = within(1, unit="bytes", doc="longer documents are left out")
    shuffle_seed: int = within(0, doc="seed of the order of windows")
    tokenizer: TokenizerConfig
    domains: dict[str, DomainConfig]
    """The domains of the mixture, by names of your choice."""

    def __post_init__(self) -> None:
        if not self.domains or sum(d.weight for d in self.domains.values()) <= 0:
            raise ConfigError("domains: at least one domain needs a positive weight")
        for name in (self.name, *self.domains):  # they become names of folders; "overall" is the row of all domains
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or name == "overall":
                raise ConfigError(f"'{name}': a name is made of small letters, digits, '-' and '_', and not 'overall'")
