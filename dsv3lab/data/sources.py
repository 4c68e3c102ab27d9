"""Texts that every installation has: the files of installed packages, read as source, readme or reference prose.

Only files that a wheel carries are read, through the package's own list of files (RECORD), so the same pinned packages
give the same texts whether pip or uv installed them. Left out, with the reason:

- tests, fixtures and recorded test data: repetitive, a compressor beats any model on them;
- vendored copies: the same text twice would stand on both sides of the split;
- generated modules (protobuf, version and build files): written at build time, they differ by platform.
"""

import ast
import csv
import importlib.metadata
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["source", "readme", "reference"]

_SKIPPED = re.compile(
    r"(^|/)("
    r"tests?|testing|_?internal_test_util|test_[^/]*|[^/]*_test\.py|conftest\.py|"  # tests
    r"_?vendor(ed)?|_vendored|externals?|_external|_extern|array_api_(compat|extra)|node_modules|"  # copies
    r"_?generated|[^/]*_pb2(_grpc)?\.py|_?version\.py|__config__\.py|_distributor_init[^/]*\.py|"  # generated
    r"[^/]*\.dist-info"
    r")(/|$)"
)
_PROSE = (".md", ".rst")


class DataError(RuntimeError):
    """Data that cannot be prepared or read; the message names the package or file and what to do."""


@dataclass(frozen=True)
class Document:
    """One text of the corpus."""

    id: str
    """`<package>/<path inside the installation>`, unique in the corpus."""
    text: str
    package: str


def documents(kind: Kind, package: str) -> Iterator[Document]:
    """The texts of one installed package, in the order of their ids.

    Args:
        kind: "source": the Python files; "readme": the package's description and its Markdown and reStructuredText
            files; "reference": for each module, its docstrings with the signatures that they explain.
        package: name of the distribution.

    Raises:
        DataError: if the package is not installed, has no list of files, or lacks a file of that list.
    """
    distribution = _distribution(package)
    if kind == "readme":
        yield from _document(package, "README", _description(distribution))
    for path in package_files(kind, package):
        text = _read(package, Path(str(distribution.locate_file(path))))
        if kind == "source":
            text = strip_licence(text)
        elif kind == "reference":
            text = reference_text(text, module=path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        yield from _document(package, path, text)


def package_files(kind: Kind, package: str) -> list[str]:
    """Paths, relative to the installation, of the files of `package` that `documents` reads; sorted."""
    return sorted(_recorded(kind, package))


def fingerprint(kind: Kind, package: str) -> tuple[str, list[str]]:
    """What `documents` depends on, without reading the files: the version, and path and recorded hash of each file."""
    return version(package), [f"{path} {sha256}" for path, sha256 in sorted(_recorded(kind, package).items())]


def version(package: str) -> str:
    """The installed version of a package."""
    return _distribution(package).version


def strip_licence(text: str) -> str:
    """A source file without its leading comment, if that is a licence: boilerplate that whole packages repeat."""
    lines = text.splitlines(keepends=True)
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    head = "".join(lines[:end])
    return "".join(lines[end:]) if re.search(r"licen[sc]e|copyright", head, re.IGNORECASE) else text


def reference_text(source: str, *, module: str) -> str:
    """The docstrings of a module as a page of reference: each under its qualified name and its signature.

    A file that this Python cannot parse (a template) has no reference text.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return ""
    lines = source.splitlines()
    parts = [f"{module}\n{'=' * len(module)}\n"]
    overview = docstring(tree)
    if overview:
        parts.append(overview + "\n")
    for node, name in _definitions(tree, prefix=""):
        text = docstring(node)
        if text:
            # The signature is the source between `def` and the docstring: ast.unparse would differ by Python version.
            signature = "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1]).strip()
            parts.append(f"{name}\n{'-' * len(name)}\n{signature}\n\n{text}\n")
    return "\n".join(parts) if len(parts) > 1 else ""


def docstring(node: ast.AST) -> str:
    """The dedented docstring of a module, class or function, or "".

    `ast.get_docstring` is not used: how it trims lines differs between Python versions, and the corpus must not.
    """
    body = getattr(node, "body", None)
    if not body or not isinstance(body[0], ast.Expr) or not isinstance(body[0].value, ast.Constant):
        return ""
    value = body[0].value.value
    if not isinstance(value, str):
        return ""
    lines = [line.rstrip() for line in value.expandtabs().split("\n")]
    indents = [len(line) - len(line.lstrip()) for line in lines[1:] if line]
    margin = min(indents, default=0)
    return "\n".join([lines[0].strip(), *(line[margin:] for line in lines[1:])]).strip("\n")


def _definitions(
    node: ast.Module | ast.ClassDef, *, prefix: str
) -> Iterator[tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child, prefix + child.name
            if isinstance(child, ast.ClassDef):
                yield from _definitions(child, prefix=f"{prefix}{child.name}.")


def _recorded(kind: Kind, package: str) -> dict[str, str]:
    suffixes = _PROSE if kind == "readme" else (".py",)
    record = _distribution(package).read_text("RECORD")  # not `.files`: from Python 3.12 on it leaves out missing ones
    if record is None:
        raise DataError(f"package '{package}' has no RECORD, the list of its files: install it with pip or uv")
    rows = (row for row in csv.reader(record.splitlines()) if row and row[0].endswith(suffixes))
    paths = ((path, sha256.partition("=")[2]) for path, sha256, *_ in rows)
    return {path: sha256 for path, sha256 in paths if not path.startswith(("..", "/")) and not _SKIPPED.search(path)}


# A Distribution of the standard library, or of its backport importlib_metadata where something has imported that.
def _distribution(package: str) -> Any:
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"package '{package}', a source of the corpus, is not installed: install the pinned set "
            "(`make run` does), or take it out of the data configuration"
        ) from None


def _description(distribution: Any) -> str:
    # Read from the bytes: the email parser behind `.metadata` differs in how it treats continuation lines.
    text = (distribution.read_text("METADATA") or "").replace("\r\n", "\n")
    return text.partition("\n\n")[2]


def _read(package: str, path: Path) -> str:
    try:
        return path.read_bytes().decode().replace("\r\n", "\n")  # wheels for Windows carry its line ends
    except UnicodeDecodeError:
        return ""  # not UTF-8: shorter than any minimum, so left out
    except OSError as error:
        raise DataError(
            f"{path}: a file of package '{package}' cannot be read ({error.strerror}): reinstall the package"
        ) from None


def _document(package: str, path: str, text: str) -> Iterator[Document]:
    if text:
        yield Document(id=f"{package}/{path}", text=text, package=package)
