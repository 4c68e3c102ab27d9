"""The corpus: documents of every domain, without duplicates, split into training and validation, in Dolma's format.

Dolma's format is gzipped JSON lines with `id`, `text`, `source`, `added`, `created` and `metadata`
(allenai/dolma, docs/data-format.md).
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsv3lab.config import ConfigError, DataConfig, nearest
from dsv3lab.data.sources import DataError, Document, documents

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

# Installed files carry no date that is the same everywhere, and the bytes of the corpus must be: the epoch of zip files.
_DATE = "1980-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Corpus:
    """Documents by domain and split, and what was left out of them."""

    documents: dict[str, dict[Split, list[Document]]]
    left_out: dict[str, dict[str, int]]
    """For each domain, the number of documents left out by reason."""

    def digest(self) -> str:
        """SHA-256 (hex) over every document: domain, split, id and text.

        It covers texts, not files: the same text compresses to other bytes under another zlib.
        """
        state = hashlib.sha256()
        for domain, splits in self.documents.items():
            for split in SPLITS:
                state.update(f"{domain}\0{split}\0{len(splits[split])}\n".encode())
                for line in dolma_lines(splits[split], domain=domain):
                    state.update(line)
        return state.hexdigest()


def collect(config: DataConfig) -> Corpus:
    """Read the documents of every domain.

    A family that any domain holds out is held out of all of them, so a package's readme cannot stand in training while
    its source is in validation. Of equal texts one is kept, a validation one if there is one.

    Raises:
        ConfigError: if a held-out family names no listed package or no text, or a package feeds both source and reference.
        DataError: if a package is missing or damaged, or a domain ends up without training or validation text.
    """
    check_packages(config)
    domains = dict(sorted(config.domains.items()))  # the order in a YAML file means nothing, as in the config's digest
    held_out = sorted({family for domain in domains.values() for family in domain.validation})
    kept: dict[str, dict[Split, list[Document]]] = {}
    left_out: dict[str, dict[str, int]] = {}
    for name, domain in domains.items():
        split: dict[Split, list[Document]] = {"train": [], "validation": []}
        counts = {"too short": 0, "too long": 0, "duplicate": 0, "above max_bytes": 0}
        for package in domain.packages:
            for document in documents(domain.kind, package):
                size = len(document.text.encode())
                if size < config.min_document_bytes:
                    counts["too short"] += 1
                elif size > config.max_document_bytes:
                    counts["too long"] += 1
                else:
                    split["validation" if is_held_out(document, held_out) else "train"].append(document)
        kept[name], left_out[name] = split, counts
    for family in (family for family in held_out if "/" in family):
        if not any(is_held_out(document, [family]) for split in kept.values() for document in split["validation"]):
            raise ConfigError(
                f"domains: the held-out family '{family}' has no document; it must be a folder of the package"
            )
    _drop_duplicates(kept, left_out)
    for name, domain in domains.items():
        split = {part: sorted(kept[name][part], key=_shuffled) for part in SPLITS}
        split["train"], above = _up_to(split["train"], domain.max_bytes)
        kept[name], left_out[name]["above max_bytes"] = split, above
        for part in SPLITS:
            if not split[part]:
                raise DataError(
                    f"data.domains.{name}: no {part} document of at least {config.min_document_bytes} bytes; "
                    "list more packages, or other families in `validation`"
                )
    return Corpus(kept, left_out)


def is_held_out(document: Document, families: Iterable[str]) -> bool:
    """Whether a document belongs to one of the held-out families.

    A family is a package ("tornado"), or a package and a folder in it ("scikit-learn/cluster"). The second form is
    matched below the package's import folder, whatever that folder's name, and leaves the readme in training.
    """
    for family in families:
        package, _, folder = family.partition("/")
        if document.package == package:
            inside = document.id.split("/")[2:]  # package / import folder / folder / ...
            if not folder or (len(inside) > 1 and inside[0] == folder):
                return True
    return False


def check_packages(config: DataConfig) -> None:
    """Refuse held-out families without a package, and packages whose texts would enter twice.

    Raises:
        ConfigError: naming the key.
    """
    kinds: dict[str, set[str]] = {}
    for name, domain in config.domains.items():
        for package in domain.packages:
            kinds.setdefault(package, set()).add(domain.kind)
        for family in domain.validation:
            if family.partition("/")[0] not in domain.packages:
                raise ConfigError(
                    f"domains.{name}.validation: '{family}' is of no package of this domain{nearest(family, domain.packages)}"
                )
    both = sorted(package for package, seen in kinds.items() if {"source", "reference"} <= seen)
    if both:
        raise ConfigError(
            f"domains: {', '.join(both)} feeds both a source and a reference domain, which would repeat its docstrings"
        )


def dolma_lines(items: Iterable[Document], *, domain: str) -> Iterator[bytes]:
    """The documents as lines of JSON in Dolma's format, UTF-8, with the line end."""
    for item in items:
        record = {
            "id": item.id,
            "text": item.text,
            "source": domain,
            "added": _DATE,
            "created": _DATE,
            "metadata": {"package": item.package},
        }
        yield json.dumps(record, ensure_ascii=False).encode() + b"\n"


def write_dolma(path: Path, items: Iterable[Document], *, domain: str) -> None:
    """Write documents as gzipped JSON lines; the same documents give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", compresslevel=6, mtime=0) as packed:
        packed.writelines(dolma_lines(items, domain=domain))


def read_dolma(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of gzipped JSON lines.

    Raises:
        DataError: if the file is missing, is not gzip, ends early or holds a line that is not a JSON object with text.
    """
    number = 0
    try:
        with gzip.open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                record = json.loads(line)
                if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                    raise DataError(f"{path}, line {number}: not a document with a text; prepare the data again")
                yield record
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}, after line {number}: cannot be read ({error}); prepare the data again") from None


def _drop_duplicates(kept: dict[str, dict[Split, list[Document]]], left_out: dict[str, dict[str, int]]) -> None:
    seen: set[bytes] = set()
    for part in ("validation", "train"):  # validation first: an equal training document is the one to go
        for name, split in kept.items():
            unique = []
            for document in split[part]:
                key = hashlib.sha256(document.text.strip().encode()).digest()
                if key in seen:
                    left_out[name]["duplicate"] += 1
                else:
                    seen.add(key)
                    unique.append(document)
            split[part] = unique


def _shuffled(document: Document) -> bytes:
    # An order without meaning that any machine reproduces, so that every prefix is a sample of all packages.
    return hashlib.sha256(document.id.encode()).digest()


def _up_to(items: list[Document], limit: int) -> tuple[list[Document], int]:
    total = 0
    for taken, item in enumerate(items):
        total += len(item.text.encode())
        if total > limit:
            return items[:taken], len(items) - taken
    return items, 0
