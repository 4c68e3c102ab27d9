"""What the processes of the notebooks inherit."""

from pathlib import Path

import pytest

from dsv3lab.workbook.process import kernel_environment, large_pages


def test_large_pages_are_asked_for_beside_what_the_user_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert large_pages({"A": "1"}) == {"A": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    other = "glibc.malloc.arena_max=1"
    assert large_pages({"GLIBC_TUNABLES": other})["GLIBC_TUNABLES"] == f"{other}:glibc.malloc.hugetlb=1"
    chosen = f"glibc.malloc.hugetlb=0:{other}"
    assert large_pages({"GLIBC_TUNABLES": chosen})["GLIBC_TUNABLES"] == chosen
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert kernel_environment(tmp_path, stage="s")["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
