"""Memory for the model: pages that stay with the process, and batches as large as a GPU has room for."""

import ctypes
import platform

__all__ = ["LARGEST_BATCH", "fitting_batch", "keep_freed_memory"]

LARGEST_BATCH = 64  #: images a batch beyond which a GPU gains nothing
ROOM = 0.8  #: share of the free memory that a batch may fill; the rest is for fragments and library workspaces

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  #: from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next allocation; return whether it could be told to.

    By default glibc gives large arrays back to the system at once, and each new feature map then starts with a page
    fault for every 4 kB of it: a quarter of the time of a full-size autoencoder. The process keeps its peak size.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, -1))


def fitting_batch(free: int, image: int) -> int:
    """The power of two of images that fit ``free`` bytes when one needs ``image`` bytes; at least 1."""
    fits = min(LARGEST_BATCH, int(ROOM * free) // max(image, 1))
    return 1 << max(0, fits.bit_length() - 1)
