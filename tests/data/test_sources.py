import sys
from pathlib import Path

import pytest

from dsv3lab.data import DataError
from dsv3lab.data.sources import documents, package_files, reference_text, strip_licence
from tests.data.packages import install, prose


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_only_files_that_every_installation_has_are_read(site: Path):
    kept = {"pkg/a.py": prose(1), "pkg/sub/b.py": prose(2)}
    left = dict.fromkeys(
        [
            "pkg/tests/test_a.py", "pkg/test_c.py", "pkg/_vendor/d.py", "pkg/x_pb2.py", "pkg/_version.py", "pkg/version.py",
            "pkg/data.json", "pkg/notes.md", "../../bin/pkg.py", "pkg/__config__.py",
        ],
        prose(3),
    )  # fmt: skip
    install(site / "lib", "pkg", {})
    install(site, "pkg", kept | {path: text for path, text in left.items() if not path.startswith("..")})
    assert package_files("source", "pkg") == sorted(kept)
    assert [document.id for document in documents("source", "pkg")] == ["pkg/pkg/a.py", "pkg/pkg/sub/b.py"]


def test_readme_is_the_description_and_the_prose_files(site: Path):
    install(site, "pkg", {"pkg/guide.md": "A guide.\n", "pkg/a.py": prose(1)}, readme="About it.\n\nMore.\n")
    read = {document.id: document.text for document in documents("readme", "pkg")}
    assert read == {"pkg/README": "About it.\n\nMore.\n", "pkg/pkg/guide.md": "A guide.\n"}


def test_a_leading_licence_is_left_out_and_other_comments_stay():
    code = "import os\n# Copyright is discussed here\n"
    assert strip_licence("#!/usr/bin/env python\n# Licensed under X\n#\n\n" + code) == code
    assert strip_licence("# What this does\n" + code) == "# What this does\n" + code


def test_reference_text_is_docstrings_under_names_and_signatures():
    source = (
        '"""Overview."""\n'
        "def plain(x):\n    return x\n"
        "class Thing:\n"
        '    """A thing.\n\n    More:\n        indented\n    """\n'
        "    async def go(\n        self, to: int\n    ) -> None:\n"
        '        """Go."""\n        secret_code()\n'
    )
    expected = (
        "pkg.mod\n=======\n\nOverview.\n\n"
        "Thing\n-----\nclass Thing:\n\nA thing.\n\nMore:\n    indented\n\n"
        "Thing.go\n--------\nasync def go(\n        self, to: int\n    ) -> None:\n\nGo.\n"
    )
    assert reference_text(source, module="pkg.mod") == expected


@pytest.mark.parametrize("source", ["x = 1\n", "{{ template }} not python", "\0"])
def test_a_module_without_docstrings_has_no_reference_text(source: str):
    assert reference_text(source, module="pkg") == ""


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(DataError, match="'no-such-package'.*not installed"):
        list(documents("source", "no-such-package"))


def test_a_file_that_is_gone_is_named(site: Path):
    install(site, "pkg", {"pkg/a.py": prose(1)})
    (site / "pkg/a.py").unlink()
    with pytest.raises(DataError, match=r"pkg/a\.py.*'pkg'.*reinstall"):
        list(documents("source", "pkg"))


def test_a_package_without_a_list_of_files_is_named(site: Path):
    install(site, "pkg", {"pkg/a.py": prose(1)})
    (site / "pkg-1.0.dist-info/RECORD").unlink()
    with pytest.raises(DataError, match="'pkg' has no RECORD"):
        list(documents("source", "pkg"))


def test_text_that_is_not_utf8_is_left_out(site: Path):
    install(site, "pkg", {"pkg/a.py": b"name = '\xff'\n", "pkg/b.py": prose(1)})
    assert [document.id for document in documents("source", "pkg")] == ["pkg/pkg/b.py"]


def test_line_ends_do_not_depend_on_the_platform(site: Path):
    install(site, "pkg", {"pkg/a.py": b"a = 1\r\nb = 2\r\n"}, readme="One.\r\nTwo.\r\n")
    assert [document.text for document in documents("source", "pkg")] == ["a = 1\nb = 2\n"]
    assert [document.text for document in documents("readme", "pkg")] == ["One.\nTwo.\n"]
