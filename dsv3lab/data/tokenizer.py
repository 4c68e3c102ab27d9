"""A byte-level BPE trained on the training split, and the fast way to encode a corpus with it."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dsv3lab.data.sources import DataError

END_OF_DOCUMENT = "<|end_of_document|>"

# How text is cut before merges are learned: a word with one sign before it, up to three digits, signs with the line end
# after them (as DeepSeek-V3's tokenizer, report 4.1: tokens that combine punctuations and line breaks), and line breaks
# with the indentation after them, which is a tenth of Python source.
_WORDS = r"[^\r\n{L}{N}]?[{L}]+|[{N}]{{1,3}}| ?[^\s{L}{N}]+[\r\n]* *|\s*[\r\n]+ *|\s+(?!\S)|\s+"
_UNICODE_WORDS = _WORDS.format(L=r"\p{L}", N=r"\p{N}")
_ASCII_WORDS = re.compile(_WORDS.format(L="A-Za-z", N="0-9"), re.ASCII)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learn the merges. Every byte is a token, so any text can be encoded and no token is unknown.

    Args:
        texts: the training text.
        vocab_size: entries wanted, the end-of-document token (id 0) included; a small text gives fewer.

    Returns:
        A tokenizer that reads the end-of-document token's name inside a text as plain text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_UNICODE_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        DataError: if it is missing, damaged, or has no end-of-document token.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{path}: not a tokenizer ({error}); prepare the data again") from None
    if tokenizer.token_to_id(END_OF_DOCUMENT) is None:
        raise DataError(f"{path}: has no token {END_OF_DOCUMENT}; prepare the data again")
    tokenizer.encode_special_tokens = True
    return tokenizer


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The UTF-8 bytes that each token stands for, by id; none for the end-of-document token."""
    values = _byte_of_character()
    out = []
    for index in range(tokenizer.get_vocab_size()):
        token = tokenizer.id_to_token(index) or ""
        out.append(b"" if token == END_OF_DOCUMENT else bytes(values[character] for character in token))
    return out


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """The tokens of each text (uint32, without end-of-document), equal to `tokenizer.encode(text).ids`.

    Cutting into words takes most of the time in `tokenizers`, and a corpus repeats its words: ASCII texts are cut by
    Python's `re`, whose pattern means the same there, and each distinct word is encoded once. Other texts take the
    tokenizer's own way.
    """
    index: dict[str, int] = {}
    encode = _encoder(tokenizer, index)
    batch = 512  # documents whose words are held at once
    for start in range(0, len(texts), batch):
        yield from encode(texts[start : start + batch])


def _encoder(tokenizer: Tokenizer, index: dict[str, int]) -> Callable[[Sequence[str]], list[np.ndarray]]:
    lengths = np.zeros(0, np.int64)
    flat = np.zeros(0, np.uint32)

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        nonlocal lengths, flat
        known = len(index)
        cut = [
            np.fromiter((index.setdefault(word, len(index)) for word in _ASCII_WORDS.findall(text)), np.int64)
            if text.isascii()
            else None
            for text in texts
        ]
        new = [e.ids for e in tokenizer.encode_batch_fast(list(itertools.islice(index, known, None)))]
        lengths = np.concatenate([lengths, np.array([len(ids) for ids in new], np.int64)])
        flat = np.concatenate([flat, np.fromiter(itertools.chain.from_iterable(new), np.uint32)])
        starts = np.cumsum(lengths) - lengths
        others = iter(tokenizer.encode_batch_fast([text for text in texts if not text.isascii()]))
        return [
            flat[_ranges(starts[words], lengths[words])] if words is not None else np.array(next(others).ids, np.uint32)
            for words in cut
        ]

    return encode


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`concatenate([arange(s, s + n) for s, n in zip(starts, lengths)])`."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def _byte_of_character() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 characters stand for themselves, the other bytes, in order, for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(0x100 + i): byte for i, byte in enumerate(rest)}
