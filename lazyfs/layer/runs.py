"""Runs: neighbouring pieces of a blob that are asked for by one request."""

from typing import NamedTuple

from cache.flights import Flight
from lazyfs.layer.piece import Piece
from lazyfs.layer.turns import Turn


class Fetch(NamedTuple):
    """A piece on its way."""

    piece: Piece
    flight: Flight
    rotten: bool = False
    """What the store has of it is to be replaced, but not before the new bytes are there."""


class Passing(NamedTuple):
    """A piece between others that comes along, though the store has it or somebody fetches it."""

    piece: Piece


Run = list[Fetch | Passing]


class Queued(NamedTuple):
    """A run that waits for its turn."""

    run: Run
    turn: Turn


def length_of(run: Run) -> int:
    """Of the range of the blob that a run takes."""
    return run[-1].piece.where.end - run[0].piece.where.offset
