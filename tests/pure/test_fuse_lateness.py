"""What is remembered of reads that failed late."""

from lazyfs.errors import DeadlineExceededError, LazyfsError
from lazyfs.fuse.lateness import MAX_REMEMBERED, MEMORY_S, Lateness, LateRead
from lazyfs.model import ByteRange, NodeId

ERROR = DeadlineExceededError("nothing came")
NODE = NodeId(7)


def late(offset: int, length: int, error: LazyfsError = ERROR) -> LateRead:
    return LateRead(NODE, ByteRange(offset, length), error)


def test_what_overlaps_fails_for_a_moment_only():
    lateness = Lateness()
    lateness.note(late(4096, 8192), waited_s=30, now_s=100)
    for offset, length in ((4096, 8192), (0, 4097), (12287, 1), (0, 1 << 30)):
        assert lateness.error(NODE, ByteRange(offset, length), 100.5) is ERROR
    for offset, length in ((0, 4096), (12288, 4096)):
        assert lateness.error(NODE, ByteRange(offset, length), 100.5) is None
    assert lateness.error(NodeId(8), ByteRange(4096, 1), 100.5) is None
    assert lateness.error(NODE, ByteRange(4096, 1), 100 + MEMORY_S) is None
    assert lateness.error(NODE, ByteRange(4096, 1), 100.5) is None  # forgotten for good


def test_a_quick_failure_is_not_remembered():
    lateness = Lateness()
    lateness.note(late(0, 1), waited_s=MEMORY_S / 2, now_s=5)
    assert lateness.error(NODE, ByteRange(0, 1), 5) is None


def test_the_same_read_late_again_is_remembered_anew():
    lateness = Lateness()
    lateness.note(late(0, 1), waited_s=2, now_s=1)
    lateness.note(late(8, 1), waited_s=2, now_s=1.5)
    lateness.note(late(0, 1), waited_s=2, now_s=1.9)
    assert lateness.error(NODE, ByteRange(0, 1), 2.8) is ERROR
    assert lateness.error(NODE, ByteRange(8, 1), 2.6) is None


def test_no_more_is_remembered_than_the_limit():
    lateness = Lateness()
    for offset in range(MAX_REMEMBERED + 1):
        lateness.note(late(offset, 1), waited_s=2, now_s=1)
    assert lateness.error(NODE, ByteRange(0, 1), 1) is None
    assert lateness.error(NODE, ByteRange(1, 1), 1) is ERROR
