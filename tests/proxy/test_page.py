"""Rules for all web pages of features."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.page import PARTS, digest, shown

PAGES = sorted((Path(__file__).parents[2] / "plugins").rglob("*.html"))


def test_there_are_pages() -> None:
    assert [one.parent.name for one in PAGES] == ["comparison", "usage"]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.parent.name)
def test_a_page_inserts_no_html_and_loads_nothing_from_elsewhere(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|localStorage|eval\(", text)
    assert not re.search(r"""<[^>]+\s(on\w+|style)=|javascript:|src=""", text)
    assert set(re.findall(r"https?://[^\"]+", text)) <= {"http://www.w3.org/2000/svg"}  # a namespace, never fetched
    assert text.count("<script") == text.count("<style") == 1


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.parent.name)
def test_a_pages_content_security_policy_is_minimal(file: Path) -> None:
    body, headers = shown(file)
    parts = dict(PARTS.findall(body.decode()))
    policy = headers["Content-Security-Policy"]
    assert f"script-src '{digest(parts['script'])}';" in policy and f"style-src '{digest(parts['style'])}';" in policy
    assert policy.startswith("default-src 'none'") and "connect-src 'self'" in policy and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
