"""Detect the compute device and the arithmetic that is fast on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from resp_tune.config import Precision, TrialConfig


@dataclass(frozen=True)
class ComputeDevice:
    """What a trial computes on; `bfloat16` says whether it has native bfloat16."""

    type: str
    name: str
    bfloat16: bool

    @property
    def precision(self) -> Precision:
        """Return the precision that `auto` means on the device."""
        return "bfloat16" if self.bfloat16 else "float32"


def detect_compute_device(device_type: str) -> ComputeDevice:
    """Return the GPU or the CPU of this process; emulated bfloat16 is slower than float32."""
    if device_type == "cuda":
        native = bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return ComputeDevice(device_type, torch.cuda.get_device_name(), native)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return ComputeDevice(device_type, "cpu", native)


def common_compute_device(devices: Sequence[ComputeDevice]) -> ComputeDevice:
    """Return what holds for all `devices`, of one type, any of which a trial may get."""
    names = sorted({device.name for device in devices})
    return ComputeDevice(devices[0].type, " or ".join(names), all(d.bfloat16 for d in devices))


def resolve_precision(config: TrialConfig, device: ComputeDevice) -> TrialConfig:
    """Return `config` with the device's precision instead of `auto`, so that it is recorded."""
    return config.replace({"precision": device.precision}) if config.precision == "auto" else config
