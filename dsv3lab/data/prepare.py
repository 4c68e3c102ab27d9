"""From installed packages to a prepared folder: corpus, tokenizer, streams of tokens, manifest.

The folder is named by its content, and so is what its manifest says: another Python or a new installation that gives
the same texts finds the folder that is there and leaves it alone, since records name its manifest and a training may be
reading it. Which installation leads to which folder stands beside it, in `.<name>.fingerprints.json`.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from dsv3lab.config import DataConfig, digest, plain, runs_dir
from dsv3lab.config.disk import sha256_file, write_atomic
from dsv3lab.data import corpus, digests, sources, tokenizer
from dsv3lab.data.dataset import FORMAT, MANIFEST, Dataset, open_dataset, read_manifest
from dsv3lab.data.mixing import make_mixture
from dsv3lab.data.sources import DataError, Document

Progress = Callable[[str], None]


def prepare(config: DataConfig, root: Path | None = None, *, progress: Progress = print) -> Dataset:
    """Prepare the dataset of `config` below `root`, or open it if it is there.

    The folder `<name>-<digest>` appears in one rename when it is complete, and is never replaced. A lock makes a second
    process wait for the first and then use its result; the lock of a killed process is free, and what it left is removed.

    Args:
        config: what to prepare.
        root: where datasets are kept; by default `data` in the folder of all outputs.
        progress: receives one line for each step, with the seconds since the start.

    Raises:
        ConfigError: for weights or families that cannot be used.
        DataError: for a package that is missing or damaged, or a prepared folder that was changed.
    """
    root = runs_dir() / "data" if root is None else Path(root)
    root.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def say(text: str) -> None:
        progress(f"data {time.monotonic() - started:6.1f} s  {text}")

    corpus.check_packages(config)
    make_mixture({name: domain.weight for name, domain in config.domains.items()})  # refuse bad weights at once
    key = _fingerprint(config)
    with _lock(root / f".{config.name}.lock", say):
        known = _Fingerprints(root / f".{config.name}.fingerprints.json")
        folder = known.find(key)
        if folder is None:
            for left in root.glob(f".{config.name}.*.tmp"):
                shutil.rmtree(left)
            folder = _build(config, root, say)
        dataset = open_dataset(folder)
        known.add(key, folder)
    say(f"{folder.name} ready; {digests.compare(config, dataset.manifest['corpus']['digest']).message}")
    return dataset


def _build(config: DataConfig, root: Path, say: Progress) -> Path:
    say(f"reading {len(digests.versions(config))} packages")
    collected = corpus.collect(config)
    for name, split in collected.documents.items():
        say(f"{name}: " + ", ".join(f"{part} {_size(split[part])}" for part in corpus.SPLITS))
    corpus_digest = collected.digest()
    temporary = root / f".{config.name}.{uuid.uuid4().hex[:8]}.tmp"
    temporary.mkdir()
    for name, split in collected.documents.items():
        for part in corpus.SPLITS:
            corpus.write_dolma(temporary / "documents" / name / f"{part}.jsonl.gz", split[part], domain=name)
    say("documents written; training the tokenizer")
    trained = tokenizer.train_tokenizer(_sample(config, collected), vocab_size=config.tokenizer.vocab_size)
    trained.save(str(temporary / "tokenizer.json"))
    say(f"tokenizer of {trained.get_vocab_size()} entries; encoding")
    dtype = "uint16" if trained.get_vocab_size() <= 2**16 else "uint32"
    domains = {
        name: {
            part: _encode(trained, split[part], temporary / part / f"{name}.bin", dtype, config.sequence_length)
            for part in corpus.SPLITS
        }
        | {"left_out": collected.left_out[name]}
        for name, split in collected.documents.items()
    }
    _require_windows(domains, config)
    found = {"dtype": dtype, "vocab_size": trained.get_vocab_size(), "domains": domains}
    manifest = _manifest(config, temporary, corpus_digest) | found
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    folder = root / f"{config.name}-{manifest['digest'][:12]}"
    if folder.exists():  # the same content from another installation
        say(f"{folder.name} is there already and stays as it is")
        shutil.rmtree(temporary)
    else:
        os.rename(temporary, folder)
    return folder


def _manifest(config: DataConfig, folder: Path, corpus_digest: str) -> dict[str, Any]:
    """What a dataset is made of: its configuration, its corpus, its tokenizer, and the hash of each of its files."""
    tokens = sha256_file(folder / "tokenizer.json")
    made_of = {"format": FORMAT, "config": plain(config), "corpus": corpus_digest, "tokenizer": tokens}
    files = {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        "format": FORMAT,
        "digest": digest(made_of),
        "config": plain(config),
        "corpus": {"digest": corpus_digest},
        "files": files,
    }


def _encode(trained: Tokenizer, items: list[Document], path: Path, dtype: str, length: int) -> dict[str, int]:
    """Write one stream of tokens; the counts of its documents, bytes, tokens and windows.

    Raises:
        DataError: if the tokens do not stand for exactly the bytes of the documents.
    """
    end = np.array([trained.token_to_id(tokenizer.END_OF_DOCUMENT)], dtype)
    width = np.array([len(value) for value in tokenizer.token_bytes(trained)])
    texts = [item.text for item in items]
    path.parent.mkdir(exist_ok=True)
    total, n_bytes = 1, 0
    with path.open("wb") as file:
        file.write(end.tobytes())
        for text, tokens in zip(texts, tokenizer.encode_documents(trained, texts), strict=True):
            size = len(text.encode())
            if int(width[tokens].sum()) != size:
                raise DataError(f"{path.stem}: the tokens of a document do not stand for its {size} bytes")
            file.write(tokens.astype(dtype).tobytes() + end.tobytes())
            total, n_bytes = total + len(tokens) + 1, n_bytes + size
    return {"documents": len(items), "bytes": n_bytes, "tokens": total, "windows": (total - 1) // length}


def _sample(config: DataConfig, collected: corpus.Corpus) -> Iterator[str]:
    """Training texts for the merges: `train_bytes` in all, from each domain its weight's share."""
    total = sum(domain.weight for domain in config.domains.values())
    for name, domain in sorted(config.domains.items()):
        left = config.tokenizer.train_bytes * domain.weight / total
        for item in collected.documents[name]["train"]:
            if left <= 0:
                break
            left -= len(item.text.encode())
            yield item.text


def _require_windows(domains: dict[str, Any], config: DataConfig) -> None:
    for name, counts in domains.items():
        if counts["train"]["windows"] == 0:
            raise DataError(
                f"data.domains.{name}: {counts['train']['tokens']} training tokens are less than one window of "
                f"{config.sequence_length + 1}; list more packages or shorten data.sequence_length"
            )


def _fingerprint(config: DataConfig) -> str:
    """What the prepared folder depends on, found without reading a text: the configuration, and the recorded hashes of
    the files that would be read."""
    read = {
        f"{name}/{package}": sources.fingerprint(domain.kind, package)
        for name, domain in config.domains.items()
        for package in domain.packages
    }
    return digest({"format": FORMAT, "config": plain(config), "python": digests.python_version(), "files": read})


class _Fingerprints:
    """Which installation (see `_fingerprint`) leads to which folder beside this file; read and written under the lock.

    Only a short cut: without the file, or with one that cannot be read, the texts are read again and lead to the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            content = {}
        self._folders = {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}

    def find(self, key: str) -> Path | None:
        """The folder of this installation, if it is there."""
        folder = self._path.parent / self._folders.get(key, ".none")
        return folder if folder.is_dir() and read_manifest(folder).get("format") == FORMAT else None

    def add(self, key: str, folder: Path) -> None:
        """Remember it, and forget folders that were deleted."""
        if self._folders.get(key) != folder.name:
            kept = {k: name for k, name in self._folders.items() if (self._path.parent / name).is_dir()}
            write_atomic(self._path, json.dumps(kept | {key: folder.name}, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def _lock(path: Path, say: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process prepares {path.name[1:].removesuffix('.lock')}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file frees the lock, as does the death of the process


def _size(items: list[Document]) -> str:
    return f"{len(items)} documents, {sum(len(item.text.encode()) for item in items) / 1e6:.2f} MB"
