"""What a model is compared with, on the same bytes: a token bigram, and the compressors that everybody has.

All figures are bits per UTF-8 byte of the documents. NumPy and the standard library only.
"""

import functools
import gzip
import lzma
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dsv3lab.config import EvalConfig
from dsv3lab.data import Dataset, Validation


@dataclass(frozen=True)
class References:
    """Bits per byte of each reference on one domain, or weighted over all."""

    bigram: float
    """Token bigram counted on the tokens that the model was trained on; end-of-document tokens are a cost for both."""
    bigram_corpus: float
    """The same, counted on the whole training corpus, of which a short training sees a part."""
    gzip_context: float
    """`gzip -9` of each window's targets on its own: what the model sees, 18 bytes of container included."""
    gzip_document: float
    """`gzip -9` of each document."""
    xz_document: float
    """`xz -9` of each document."""
    gzip_together: float
    """`gzip -9` of all documents of the domain in one file."""
    xz_together: float
    """`xz -9` of all documents of the domain in one file."""


@dataclass(frozen=True, eq=False)
class Bigram:
    """Interpolated Kneser-Ney over tokens (Kneser and Ney, 1995), with one absolute discount.

    p(t | c) = max(n(c, t) - D, 0) / n(c) + D m(c) / n(c) p1(t), where m(c) counts the distinct tokens after c and
    p1(t) = (contexts of t + 1) / (distinct pairs + vocabulary): how many different tokens t was seen after.
    D = n1 / (n1 + 2 n2) from the pairs seen once and twice in training (Ney, Essen and Kneser, 1994), so nothing is fitted
    to held-out text.
    """

    vocab_size: int
    discount: float
    pairs: np.ndarray
    """int64[k], sorted: c * vocabulary + t of the pairs seen."""
    counts: np.ndarray
    """int64[k]: how often."""
    totals: np.ndarray
    """int64[vocabulary]: n(c)."""
    distinct: np.ndarray
    """int64[vocabulary]: m(c)."""
    lower: np.ndarray
    """float64[vocabulary]: p1."""

    @classmethod
    def fit(cls, streams: Iterable[np.ndarray], *, vocab_size: int) -> "Bigram":
        """Count the pairs of neighbours in each stream of tokens [length], or in each row of windows [n, length]."""
        keys = [_pairs(stream[..., :-1].ravel(), stream[..., 1:].ravel(), vocab_size) for stream in streams]
        pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
        context, token = np.divmod(pairs, vocab_size)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        contexts_of = np.bincount(token, minlength=vocab_size)
        return cls(
            vocab_size=vocab_size,
            discount=once / (once + 2 * twice) if once else 0.5,  # no pair seen once: any discount in (0, 1) will do
            pairs=pairs,
            counts=counts,
            totals=np.bincount(context, weights=counts, minlength=vocab_size).astype(np.int64),
            distinct=np.bincount(context, minlength=vocab_size),
            lower=(contexts_of + 1) / (len(pairs) + vocab_size),
        )

    def probability(self, context: np.ndarray, token: np.ndarray) -> np.ndarray:
        """p(token | context), elementwise: float64."""
        keys = _pairs(context, token, self.vocab_size)
        place = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        count = np.where(self.pairs[place] == keys, self.counts[place], 0)
        total = self.totals[context]
        seen = np.maximum(count - self.discount, 0) / np.maximum(total, 1)
        rest = np.where(total > 0, self.discount * self.distinct[context] / np.maximum(total, 1), 1.0)
        return seen + rest * self.lower[token]

    def bits(self, windows: np.ndarray, *, targets: int) -> float:
        """Bits for the first `targets` targets of consecutive windows."""
        context, token = windows[:, :-1].reshape(-1)[:targets], windows[:, 1:].reshape(-1)[:targets]
        return float(-np.log2(self.probability(context, token)).sum())


def references(dataset: Dataset, *, config: EvalConfig, windows: np.ndarray) -> dict[str, References]:
    """Measure every reference on the documents that `evaluate` gives the model.

    Args:
        dataset: what the model was trained on.
        config: how much held-out text is taken.
        windows: the training windows that the model has seen, int [n, T+1]: `dataset.batch_at(0, batch_size=n)`.

    Returns:
        The references of each domain, and under "overall" their means weighted by the domains' training weights.
    """
    fit = functools.partial(Bigram.fit, vocab_size=dataset.vocab_size)
    bigram, corpus = fit([windows]), fit(dataset.training_tokens(name) for name in dataset.domains)
    measured = {
        name: measure(
            dataset.validation(name, every=config.every),
            bigram=bigram,
            corpus=corpus,
            token_bytes=dataset.token_bytes,
        )
        for name in dataset.domains
    }
    overall = {
        field: sum(dataset.weights[name] * getattr(row, field) for name, row in measured.items())
        for field in References.__dataclass_fields__
    }
    return {**measured, "overall": References(**overall)}


def measure(validation: Validation, *, bigram: Bigram, corpus: Bigram, token_bytes: list[bytes]) -> References:
    """The references of one domain's documents."""
    n_bytes = sum(validation.n_bytes)
    texts = [text.encode() for text in validation.documents]
    chunks = context_bytes(validation.windows, targets=validation.targets, token_bytes=token_bytes)
    return References(
        bigram=bigram.bits(validation.windows, targets=validation.targets) / n_bytes,
        bigram_corpus=corpus.bits(validation.windows, targets=validation.targets) / n_bytes,
        gzip_context=8 * sum(map(gzip_size, chunks)) / n_bytes,
        gzip_document=8 * sum(map(gzip_size, texts)) / n_bytes,
        xz_document=8 * sum(map(xz_size, texts)) / n_bytes,
        gzip_together=8 * gzip_size(b"".join(texts)) / n_bytes,
        xz_together=8 * xz_size(b"".join(texts)) / n_bytes,
    )


def context_bytes(windows: np.ndarray, *, targets: int, token_bytes: list[bytes]) -> list[bytes]:
    """The text that each window predicts, in bytes; joined, the documents. Windows of padding only are left out."""
    length = windows.shape[1] - 1
    kept = (row[1 : 1 + max(0, targets - i * length)] for i, row in enumerate(windows))
    return [b"".join(token_bytes[token] for token in row) for row in kept if len(row)]


def gzip_size(data: bytes) -> int:
    """Bytes of `gzip -9` without a stored file name."""
    return len(gzip.compress(data, compresslevel=9, mtime=0))


def xz_size(data: bytes) -> int:
    """Bytes of `xz -9` (its container and CRC64 included)."""
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9))


def bits_per_byte(nats: float, *, n_bytes: int) -> float:
    """Bits per UTF-8 byte of a total cost in nats."""
    return nats / math.log(2) / n_bytes


def _pairs(context: np.ndarray, token: np.ndarray, vocab_size: int) -> np.ndarray:
    return context.astype(np.int64) * vocab_size + token
