"""What is done with memory that is free, where that decides time or size.

The settings of the C library are those of glibc, Linux's usual one; others are left alone.
"""

import contextlib
import ctypes
import os

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4  # of glibc's malloc.h
MiB = 2**20


def _call(function: str, *arguments: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


def give_back_blocks() -> None:
    """Have blocks of a megabyte and more given back to the system as soon as they are free.

    By itself glibc learns to keep them: batches of ever new shapes then make the heap grow by
    more than 100 MB.
    """
    _call("mallopt", MMAP_THRESHOLD, MiB)


def keep_products(number: int) -> None:
    """Have oneDNN and torch keep so many compiled products each; call before the first one.

    A product is compiled for each shape and takes up to half a megabyte. By themselves they keep
    1,024: texts of ever new lengths then make a process grow by hundreds of megabytes.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(number))


@contextlib.contextmanager
def kept():
    """Keep what is freed for the next step of a training, and give it back at the end.

    By itself glibc asks the system for each activation above 32 MB and returns it, and the
    system clears every page of it anew: a quarter of a training step on passages of 384 tokens.
    Few compiled products are kept: they would lie scattered among the activations, and what is
    free between them is too small for the next ones.
    """
    keep_products(64)
    _call("mallopt", MMAP_MAX, 0)  # everything from the heap,
    _call("mallopt", TRIM_THRESHOLD, -1)  # which never shrinks
    _call("mallopt", TOP_PAD, 256 * MiB)  # and grows by this much
    try:
        yield
    finally:
        _call("mallopt", MMAP_MAX, 65536)  # glibc's own, the thresholds as it had learned them
        _call("mallopt", MMAP_THRESHOLD, 32 * MiB)
        _call("mallopt", TRIM_THRESHOLD, 64 * MiB)
        _call("mallopt", TOP_PAD, MiB // 8)
        _call("malloc_trim", 0)
