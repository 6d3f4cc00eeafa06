"""The short form of ``make soak``: readers get right bytes or an error, whatever fails."""

from pathlib import Path

import pytest

from tests.support.mounting import needs_fuse
from tests.support.soak import soak

pytestmark = [pytest.mark.mount, pytest.mark.slow, needs_fuse]

SECONDS = 20.0
READERS = 40
IMAGE_MIB = 40


def test_readers_under_faults_and_kills(work_folder: Path):
    folder = work_folder / "soak"
    folder.mkdir()
    report = soak(folder, seconds=SECONDS, readers=READERS, image_mib=IMAGE_MIB, seed=7)
    assert report.violations() == [], report.text()
    assert report.kills_s
    assert report.seen.reads > READERS
    assert report.faults
