"""The settings in docs/kubernetes, read by the programs that they are for."""

import subprocess
from pathlib import Path

import pytest
import yaml

from lazyfs.cli.main import _parser
from lazyfs.snapshotter.folders import ADDRESS, ROOT

pytestmark = [pytest.mark.mount]

FOLDER = Path(__file__).parents[2] / "docs/kubernetes"


def test_containerd_takes_its_settings():
    done = subprocess.run(
        ["containerd", "--config", FOLDER / "containerd-1.toml", "config", "dump"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert 'snapshotter = "lazyfs"' in lines
    assert "disable_snapshot_annotations = false" in lines
    assert f'address = "{ADDRESS}"' in lines


def test_the_daemon_set_is_one_and_its_command_is_ours():
    documents = list(yaml.safe_load_all((FOLDER / "daemonset.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Namespace", "DaemonSet"]
    spec = documents[1]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    [container] = spec["template"]["spec"]["containers"]
    program, *words = container["command"]
    assert program == "lazyfs"
    args = _parser(words[0]).parse_args(words)
    assert (args.root, args.address) == (ROOT, ADDRESS)
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts.keys() == volumes
    assert mounts["root"]["mountPath"] == str(ROOT)
    assert mounts["root"]["mountPropagation"] == "Bidirectional"


def test_the_units_command_is_ours():
    unit = (FOLDER / "lazyfs-snapshotter.service").read_text()
    [line] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    words = line.partition("=")[2].split()
    assert Path(words[0]).name == "lazyfs"
    assert _parser(words[1]).parse_args(words[1:]).cri is not None
