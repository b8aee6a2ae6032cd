"""How the process keeps memory that a batch has freed, and how it says that there is no more."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Let malloc reuse the memory of the last batch instead of returning it to the system.

    By default glibc maps every large tensor anew and the kernel clears each of its pages, at
    every batch. Elsewhere than on Linux with glibc nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def release_memory() -> None:
    """Free what is no longer referred to, on the GPU as well."""
    gc.collect()
    torch = sys.modules.get("torch")  # without it nothing lies on a GPU
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that memory did not suffice: of a GPU, of the host, of either by torch.

    By name, since torch need not be imported to ask; torch's own word for the host's memory is a
    plain `RuntimeError`.
    """
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
