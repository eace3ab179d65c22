"""Pictures of the pages: small, there, and nothing that a browser would fetch elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = sorted((DOCS / "images").iterdir())


def test_every_picture_of_a_page_is_there_and_every_picture_is_on_a_page() -> None:
    shown = {
        (page.parent / name).resolve()
        for page in DOCS.rglob("*.md")
        for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    assert shown == {path.resolve() for path in PICTURES}


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_small_and_fetches_nothing(path: Path) -> None:
    content = path.read_bytes()
    assert 1_000 < len(content) < 200_000
    assert b"@font-face" not in content
    assert not re.findall(rb"url\(\s*[\"']?http|href=[\"']http", content)
