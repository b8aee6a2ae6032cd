"""Keep, release and limit the memory of this process, and recognise that it ran out."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Let malloc reuse the memory of the last batch instead of returning it to the system.

    By default glibc maps every large tensor again and the kernel clears each of its pages, at
    every batch. Without glibc nothing changes.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def trim_heap() -> None:
    """Return freed memory to the system; without glibc nothing happens."""
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)


def release_memory() -> None:
    """Free what is no longer referenced, on the GPU as well, and return it to the system.

    Without it, the heap that `keep_freed_memory` lets malloc keep is in pieces which a smaller
    batch may not fit into.
    """
    gc.collect()
    trim_heap()
    torch = sys.modules.get("torch")  # if not imported, nothing is on a GPU
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that the memory of a GPU or of the host ran out.

    Compared by name, so that torch need not be imported. For the host's memory, a CUDA context and
    CUDA's libraries torch raises a plain `RuntimeError`; the last of the phrases is oneDNN's.
    """
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
        return True
    phrases = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "create a primitive")
    return isinstance(error, RuntimeError) and any(p in str(error) for p in phrases)


def limit_gpu_memory(device: str, share: float) -> None:
    """Limit this process to `share` of a GPU's memory, so that trials can share it."""
    if device == "cuda" and share < 1:
        import torch

        torch.cuda.set_per_process_memory_fraction(share)
