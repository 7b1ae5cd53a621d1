"""Files that nobody may write, root included: Linux's immutable flag, see ioctl_iflags(2)."""

from __future__ import annotations

import array
import fcntl
import os
from pathlib import Path

_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_IMMUTABLE = 0x10


def set_immutable(path: Path, immutable: bool) -> bool:
    """Set or clear the flag of a file; False where its file system or the user's rights refuse."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        flags[0] = flags[0] | _IMMUTABLE if immutable else flags[0] & ~_IMMUTABLE
        fcntl.ioctl(descriptor, _SET_FLAGS, flags)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
