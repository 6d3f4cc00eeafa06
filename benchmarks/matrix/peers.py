"""Peers by adapter files: ``benchmarks/peers/*.toml``, which say what is run for each step.

    about = "what it is"
    needs = ["program", ...]      # on PATH, or the peer is left out
    once = "..."                  # shell: before the first start of an image, not timed
    prepare = "..."               # shell: before each start, nothing of the image may be here
    start = "..."                 # shell: timed; when it returns {root} can be read
    stop = "..."                  # shell: undo start, also a failed one
    like = "name"                 # another file, which has what this one lacks; it is like none

``{root}`` is the mountpoint, ``{folder}`` the peer's own folder, ``{registry}`` the registry
itself, ``{line}`` the shaped line to it, ``{name}`` the image's name in it: the ordinary image is
``{line}/{name}:tar``.
"""

import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import Contender, State
from benchmarks.system import run

FOLDER = Path(__file__).parents[1] / "peers"


@dataclass(frozen=True)
class Peer:
    """An adapter file."""

    name: str
    about: str
    needs: Sequence[str]
    start: str
    stop: str
    once: str = ""
    prepare: str = ""

    def missing(self) -> list[str]:
        """Programs that it needs and that are not installed."""
        return [program for program in self.needs if not shutil.which(program)]


def read_peers(folder: Path = FOLDER) -> dict[str, Peer]:
    """All adapter files, by their names.

    Raises:
        TypeError: one has an unknown key, or lacks one.
        KeyError: one is like a file that is not there.
        tomllib.TOMLDecodeError: one is no TOML.
    """
    files = {path.stem: tomllib.loads(path.read_text()) for path in sorted(folder.glob("*.toml"))}
    peers = {}
    for name, words in files.items():
        like = words.get("like")
        whole = {**files[like], **words} if like else words
        peers[name] = Peer(name, **{key: whole[key] for key in whole if key != "like"})
    return peers


class PeerContender(Contender):
    """A peer with one image."""

    states = (State.COLD,)

    def __init__(self, peer: Peer, folder: Path, line: str, image: str) -> None:
        super().__init__(peer.name, folder)
        self._peer = peer
        found = [program for program in map(shutil.which, peer.needs) if program]
        self.programs = [("cp", program, "/dev/null") for program in found]
        self._words: Mapping[str, str | Path] = {
            "root": self.root,
            "folder": self.folder,
            "line": line,
            "name": image,
        }

    def once(self, registry: str) -> None:
        """What is done before the first start of an image."""
        self._shell(self._peer.once.replace("{registry}", registry))

    def prepare(self, state: State) -> None:
        """Forget the image."""
        self._shell(self._peer.prepare)

    def start(self, state: State) -> None:
        """Do what the file says."""
        self._shell(self._peer.start)

    def stop(self) -> None:
        """Undo it, all that can be: no step waits for the success of the one before."""
        self._shell(self._peer.stop, check=False)
        super().stop()

    def _shell(self, words: str, *, check: bool = True) -> None:
        for name, value in self._words.items():
            words = words.replace(f"{{{name}}}", str(value))
        run("sh", "-ec" if check else "-c", words, check=check)
