"""A prepared dataset: windows of tokens as a pure function of the step.

A domain's tokens are one stream: an end-of-document token, then each document followed by one. Window i holds the tokens
i*T ... i*T+T of it, so that neighbours share one token and every token but the first is a target exactly once.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from dsv3lab.config import ConfigError, DataConfig, Ramp, build, nearest
from dsv3lab.config.disk import sha256_file
from dsv3lab.data import corpus, tokenizer
from dsv3lab.data.mixing import Mixture, make_mixture, shuffled_order
from dsv3lab.data.sources import DataError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Validation:
    """Held-out documents of one domain and their tokens."""

    windows: np.ndarray
    """int32[n, T+1], consecutive, overlapping by one token; the end of the last one is padding (end-of-document)."""
    targets: int
    """How many of the n*T targets are real: the tokens of the documents and one end-of-document token for each."""
    documents: list[str]
    """The texts, in order."""
    n_bytes: list[int]
    """UTF-8 bytes of each text."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Tokens of a prepared folder; every method is a pure function of what the folder holds."""

    folder: Path
    config: DataConfig
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    token_bytes: list[bytes]
    """The UTF-8 bytes behind each token id; none for end-of-document."""
    mixture: Mixture

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the configuration, the corpus and the tokenizer."""
        return self.manifest["digest"]

    @property
    def sequence_length(self) -> int:
        """Targets of one window, T."""
        return self.config.sequence_length

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, sorted."""
        return tuple(sorted(self.config.domains))

    @property
    def weights(self) -> dict[str, float]:
        """Share of each domain in the training windows; they add up to 1."""
        total = sum(domain.weight for domain in self.config.domains.values())
        return {name: self.config.domains[name].weight / total for name in self.domains}

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer."""
        return self.tokenizer.get_vocab_size()

    @property
    def end_of_document(self) -> int:
        """Id of the token after each document."""
        return self.token_bytes.index(b"")

    def batch_at(self, step: int, *, batch_size: int | Ramp) -> np.ndarray:
        """The training windows of one step: int32[batch_size, T+1].

        Windows are numbered through all steps, so the sequence does not depend on the batch size, nor on how it grows:
        no window is left out or taken twice. The mixture gives each number a domain and a running number in it; in each
        epoch a domain's windows come in a new order, each once.

        Args:
            step: optimizer steps done before.
            batch_size: windows of every step, or the ramp that says how many each step takes.
        """
        first, after = _windows_before(step, batch_size), _windows_before(step + 1, batch_size)
        domain_of, number = self.mixture.assign(np.arange(first, after, dtype=np.int64))
        batch = np.empty((after - first, self.sequence_length + 1), np.int32)
        for index in np.unique(domain_of):
            name = self.mixture.domains[index]
            rows = np.flatnonzero(domain_of == index)
            epoch, inside = np.divmod(number[rows], self.windows(name))
            starts = np.array(
                [
                    shuffled_order(self.windows(name), seed=self.config.shuffle_seed, domain=name, epoch=int(e))[i]
                    for e, i in zip(epoch, inside, strict=True)
                ]
            )
            batch[rows] = self.training_tokens(name)[
                starts[:, None] * self.sequence_length + np.arange(self.sequence_length + 1)
            ]
        return batch

    def windows(self, domain: str) -> int:
        """Training windows of one domain in one epoch."""
        return self.manifest["domains"][self._known(domain)]["train"]["windows"]

    def training_tokens(self, domain: str) -> np.ndarray:
        """The memory-mapped training stream of one domain (uint16 or uint32), end-of-document tokens included."""
        return _stream(self.folder / "train" / f"{self._known(domain)}.bin", self.manifest["dtype"])

    def epochs(self, step: int, batch_size: int | Ramp) -> dict[str, float]:
        """How often each domain has been read through before `step`."""
        counts = self.mixture.counts(_windows_before(step, batch_size))
        return {name: n / self.windows(name) for name, n in counts.items()}

    def validation(self, domain: str, *, every: int = 1) -> Validation:
        """The held-out documents of one domain, or a sample of them in which each package and each size has its share.

        Args:
            domain: its name.
            every: one document of so many is taken, in the order of package and size. How well a compressor does depends
                on the length of a document, so the first ones of a random order would be a matter of luck.

        Returns:
            The documents in the order of the folder, which has no meaning (see `corpus`).
        """
        path = self.folder / "documents" / self._known(domain) / "validation.jsonl.gz"
        found = [(record["metadata"]["package"], record["text"]) for record in corpus.read_dolma(path)]
        sizes = [len(text.encode()) for _, text in found]
        order = sorted(range(len(found)), key=lambda i: (found[i][0], sizes[i], i))
        taken = sorted(order[min(every // 2, len(order) - 1) :: every])
        stream = _stream(self.folder / "validation" / f"{domain}.bin", self.manifest["dtype"])
        ends = np.flatnonzero(stream == self.end_of_document)  # the first stands before the first document
        parts = [stream[:1], *(stream[ends[i] + 1 : ends[i + 1] + 1] for i in taken)]
        tokens = np.concatenate(parts).astype(np.int32)
        targets, length = len(tokens) - 1, self.sequence_length
        n = -(-targets // length)
        padded = np.full(n * length + 1, self.end_of_document, np.int32)
        padded[: len(tokens)] = tokens
        windows = padded[np.arange(n)[:, None] * length + np.arange(length + 1)]
        return Validation(windows, targets, [found[i][1] for i in taken], [sizes[i] for i in taken])

    def _known(self, domain: str) -> str:
        if domain not in self.config.domains:
            raise DataError(f"{self.folder}: no domain '{domain}'{nearest(domain, self.config.domains)}")
        return domain


def open_dataset(folder: Path) -> Dataset:
    """Open a prepared folder after checking every file against the manifest.

    Raises:
        DataError: naming the file that is missing, extra or changed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.get("format") != FORMAT:
        raise DataError(f"{folder / MANIFEST}: not of format {FORMAT}; delete {folder} and prepare the data again")
    verify_files(folder, manifest)
    try:
        config = build(DataConfig, manifest["config"], path="data")
    except ConfigError as error:
        raise DataError(
            f"{folder / MANIFEST}: of another version of dsv3lab ({error}); prepare the data again"
        ) from None
    loaded = tokenizer.load_tokenizer(folder / "tokenizer.json")
    mixture = make_mixture({name: domain.weight for name, domain in sorted(config.domains.items())})
    return Dataset(folder, config, manifest, loaded, tokenizer.token_bytes(loaded), mixture)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        DataError: if it is missing or is not a JSON object.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); delete {folder} and prepare the data again"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); delete {folder} and prepare the data again") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: not a manifest; delete {folder} and prepare the data again")
    return manifest


def verify_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare every file below `folder` with the manifest's SHA-256.

    Raises:
        DataError: naming the file that is missing, extra or changed.
    """
    advice = f"delete {folder} and prepare the data again"
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    for name, expected in manifest["files"].items():
        if name not in present:
            raise DataError(f"{folder / name}: missing, but {MANIFEST} lists it; {advice}")
        if sha256_file(folder / name) != expected:
            raise DataError(
                f"{folder / name}: changed since it was prepared (SHA-256 differs from {MANIFEST}); {advice}"
            )
    extra = sorted(present - set(manifest["files"]))
    if extra:
        raise DataError(f"{folder / extra[0]}: not listed in {MANIFEST}; {advice}")


def _windows_before(step: int, batch_size: int | Ramp) -> int:
    return step * batch_size if isinstance(batch_size, int) else batch_size.windows(step)


@functools.lru_cache(maxsize=64)
def _stream(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype=np.dtype(dtype), mode="r")
