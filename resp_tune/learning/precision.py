"""Which arithmetic a device does fast."""

from __future__ import annotations

import torch

from resp_tune.config import TrialConfig


def settle_precision(config: TrialConfig, device_type: str) -> TrialConfig:
    """`config` with `precision: auto` replaced by what the device has, so that it is recorded."""
    if config.precision != "auto":
        return config
    return config.replace({"precision": "bfloat16" if has_bfloat16(device_type) else "float32"})


def has_bfloat16(device_type: str) -> bool:
    """True where bfloat16 is native; elsewhere it is emulated and slower than float32."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
