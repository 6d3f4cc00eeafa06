"""The page on the EROFS image specification names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/erofs-image-spec.md"


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"`(test_\w+|Test\w+)`", PAGE.read_text()))
    files = (*ROOT.glob("tests/io/test_*.py"), *ROOT.glob("tests/mount/test_*.py"))
    defined = {
        name
        for path in files
        for name in re.findall(r"^ *(?:async def|def|class) (\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 30
    assert named <= defined


def test_every_requirement_has_a_row():
    rows = re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == [*range(1, 13), *range(1, 12)]
