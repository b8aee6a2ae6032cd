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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory did not suffice: of a GPU, of the host, of either by torch.

    By name, since torch need not be imported to ask; of the host's memory, of a CUDA context and
    of its libraries torch says it in a plain `RuntimeError`; oneDNN, of a kernel that it has no
    memory for, in the last of these words.
    """
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "create a primitive")
    return named or (isinstance(error, RuntimeError) and any(s in str(error) for s in said))


def limit_gpu_memory(device: str, share: float) -> None:
    """Fence this process off at `share` of a GPU's memory, or one trial takes what all need."""
    if device == "cuda" and share < 1:
        import torch

        torch.cuda.set_per_process_memory_fraction(share)
