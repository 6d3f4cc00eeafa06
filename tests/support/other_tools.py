"""A converted image in a layout folder, as tools see it that know nothing of lazyfs."""

import json
import mmap
import subprocess
from pathlib import Path
from typing import Any

from tests.support.images import digest_of, run
from tests.support.layer_blob import take_apart
from tests.support.overlay_oracle import decode
from tests.support.verity_oracle import accepts

BLOCK = 4096
SPEC = "org.erofs.dmverity."


def accepted_images(folder: Path, tag: str, work: Path) -> list[Path]:
    """What ``zstd -dc`` makes of each layer, the lowest first, if all tools accept the image.

    ``skopeo inspect`` and ``skopeo copy`` take it, ``zstd`` decodes each layer to its diff ID,
    ``fsck.erofs`` has nothing to say of it, and ``veritysetup verify`` finds its tree right.
    """
    name = f"oci:{folder}:{tag}"
    manifest, config = inspect("--raw", name), inspect("--raw", "--config", name)
    assert inspect(name)["Layers"] == [layer["digest"] for layer in manifest["layers"]]
    work.mkdir()
    run("skopeo", "copy", "--quiet", name, f"oci:{work}/copy:{tag}")
    images = []
    diff_ids = config["rootfs"]["diff_ids"]
    for number, (layer, diff_id) in enumerate(zip(manifest["layers"], diff_ids, strict=True)):
        blob = work / "copy/blobs" / layer["digest"].replace(":", "/")
        image = decode(blob, work / f"{number}.erofs")
        assert digest_of(image) == diff_id
        said = subprocess.run(["fsck.erofs", image], capture_output=True, text=True, check=True)
        assert not {"<E>", "<W>"} & set((said.stdout + said.stderr).split())
        hash_offset, root = prepare_tree(blob, image, layer["annotations"])
        assert accepts(image, hash_offset, root)
        images.append(image)
    return images


def inspect(*words: str) -> Any:
    done = subprocess.run(["skopeo", "inspect", *words], capture_output=True, check=True)
    return json.loads(done.stdout)


def prepare_tree(blob: Path, image: Path, annotations: dict[str, str]) -> tuple[int, bytes]:
    """Have the dm-verity tree behind the image; where it begins, and the digest of its root."""
    if f"{SPEC}hash_offset" in annotations:
        root = annotations[f"{SPEC}root_digest"].removeprefix("sha256:")
        return int(annotations[f"{SPEC}hash_offset"]), bytes.fromhex(root)
    with (
        blob.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        image.open("ab") as device,
    ):
        parts = take_apart(mapped, annotations)  # type: ignore[arg-type]  # sliced like bytes
        assert parts.verity is not None
        assert parts.root_digest is not None
        device.write(bytes(-device.tell() % BLOCK))
        hash_offset = device.tell()
        device.write(mapped[parts.verity.start : parts.verity.end])
        return hash_offset, parts.root_digest
