"""The memory of a conversion does not grow with the data of a layer."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tar_samples as tars
from tests.support.images import OCI, LayerFile, digest_of, noise, write_layout

WITHIN_S = 120
MEGABYTE = 1_000_000
ALLOWED_KIB = 40 * 1024
"""More for a layer that has 240 MB more: what the C library keeps for threads."""
MEASURED = """
import sys
from pathlib import Path
from lazyfs.cli.main import main
assert main(sys.argv[1:]) == 0
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def one_file(megabytes: int) -> Iterator[bytes]:
    yield tars.header(b"file", size=megabytes * MEGABYTE)
    block = noise(MEGABYTE)
    for number in range(megabytes):
        yield b"%8d" % number + block[8:]
    yield bytes(-megabytes * MEGABYTE % 512) + tars.END


def many_files(megabytes: int) -> Iterator[bytes]:
    for number in range(megabytes * 2):
        yield tars.file(b"file-%d" % number, noise(MEGABYTE // 2, b"%d" % (number % 8)))
    yield tars.END


@pytest.mark.parametrize(
    ("content", "layout"), [(one_file, "containerd"), (many_files, "erofs-spec")]
)
def test_memory_does_not_grow_with_the_layer(tmp_path: Path, content, layout):
    def peak_kib(megabytes: int) -> int:
        folder = tmp_path / f"{megabytes}"
        folder.mkdir()
        with (folder / "layer.tar").open("wb") as tar:
            tar.writelines(content(megabytes))
        digest = digest_of(folder / "layer.tar")
        size = (folder / "layer.tar").stat().st_size
        media_type = f"{OCI}.layer.v1.tar"
        layer = LayerFile(folder / "layer.tar", digest, size, digest, media_type)
        write_layout(folder / "in", [layer], "tar")
        words = ["convert", "--quiet", "--no-cache", "--jobs=2", "--layout", layout]
        words += [f"oci:{folder}/in:tar", f"oci:{folder}/out:x"]
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            env={**os.environ, "TMPDIR": os.fspath(folder)},
        )
        return int(done.stdout)

    small, large = peak_kib(60), peak_kib(300)
    assert large < small + ALLOWED_KIB, f"{small} and {large} KiB"
