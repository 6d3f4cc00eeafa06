"""What commands import: start-up is part of mount time, and imports are most of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lazy_mounts import convert
from tests.support.tiny_image import write_layout

ROOT = Path(__file__).parents[2]

LIBRARIES = {"trio", "httpx", "httpcore", "rich", "grpc", "lz4", "zstandard"}
HTTP = {"httpx", "httpcore", "h11"}


def imported_by(program: str) -> set[str]:
    """The top-level packages that a program has in the end."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nfor n in sys.modules: print(n)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("command", ["mount", "umount", "status"])
def test_commands_start_without_the_large_libraries(command):
    modules = imported_by(f"import lazyfs.cli.main, lazyfs.cli.{command}, lazyfs.mount.start")
    assert f"lazyfs.cli.{command}" in modules
    assert not modules & LIBRARIES


@pytest.mark.parametrize("command", ["umount", "status"])
def test_commands_about_mounts_know_nothing_of_registries(command):
    modules = imported_by(f"import lazyfs.cli.main, lazyfs.cli.{command}")
    assert not [name for name in modules if name.startswith(("registry", "cache"))]


OPENING = """
import sys
from contextlib import AsyncExitStack
from pathlib import Path
import trio
from lazyfs.mount import background
from lazyfs.mount.openers import open_named
from lazyfs.mount.options import MountOptions

async def main():
    async with open_named({name!r}, MountOptions(cache_dir=Path({cache!r}))) as image:
        await image.tree.attributes(1)

trio.run(main)
"""


def test_the_daemon_of_a_local_image_has_no_http_client(tmp_path):
    write_layout(tmp_path / "tiny", "a", [{"file": b"content"}])
    seekable = f"oci:{tmp_path / 'seekable'}:a"
    convert(f"oci:{tmp_path / 'tiny'}:a", seekable)
    modules = imported_by(OPENING.format(name=seekable, cache=str(tmp_path / "cache")))
    assert {"trio", "lazyfs.layer.seekable"} <= modules
    assert not modules & HTTP


def test_httpx_leaves_its_command_line_out():
    modules = imported_by("import registry.client")
    assert "httpx" in modules
    assert not modules & {"click", "pygments", "rich"}


MEANWHILE = """
import gc, sys, trio
import lazyfs.mount.background
from lazyfs.mount.asking import import_meanwhile
assert "lazyfs.mount.assemble" not in sys.modules
trio.run(import_meanwhile)
assert gc.isenabled()
before = set(sys.modules)
import lazyfs.mount.daemon, lazyfs.mount.openers
assert before == set(sys.modules)
"""


def test_a_daemon_imports_most_of_itself_behind_its_first_question():
    assert "lazyfs.mount.openers" in imported_by(MEANWHILE)


def test_a_daemon_of_a_registry_imports_nothing_for_other_images():
    modules = imported_by(f"import registry.remote, registry.source\n{MEANWHILE}")
    others = {"tarfile", "tomllib", "registry.layout", "registry.archive"}
    assert not modules & (others | {"lazyfs.mount.storefolder", "lazyfs.store.index"})
