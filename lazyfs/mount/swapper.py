"""Puts a local file in the place of a layer file under a loop device that is in use.

A process of its own, for the kernel first waits for reads in hand, which the daemon has to answer.
Arguments: the device, the inode number of the layer file, the descriptor of the local file. Exit
status 0: done, or done before. Free of imports that cost time.
"""

import fcntl
import os
import struct
import sys

LOOP_CHANGE_FD = 0x4C06
LOOP_GET_STATUS64 = 0x4C05
LOOP_INFO = struct.Struct("=QQ216x")
"""``struct loop_info64``: device and inode of the backing file (linux/loop.h)."""


def swap(device: str, inode: int, file: int) -> None:
    """Have the loop device ``device`` read ``file`` from now on, if it reads that inode now.

    Raises:
        OSError: it could not be done: the device is gone, or the sizes differ.
    """
    loop = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = fcntl.ioctl(loop, LOOP_GET_STATUS64, bytes(LOOP_INFO.size))
        if LOOP_INFO.unpack(status)[1] == inode:
            fcntl.ioctl(loop, LOOP_CHANGE_FD, file)
    finally:
        os.close(loop)


if __name__ == "__main__":
    try:
        swap(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)  # noqa: T201 - that is our answer
        sys.exit(1)
