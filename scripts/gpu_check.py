"""Check a GPU with the training loop alone, and time it.

    python scripts/gpu_check.py              one trial's size: 920 recordings of 20 s at 44.1 kHz
    python scripts/gpu_check.py --recordings 40 --epochs 2        a look, also without a GPU

Needs torch, torchaudio and numpy, and no network. Without a GPU it runs the same code on the CPU
and says that it measured no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from resp_tune.config import TrialConfig, preset
from resp_tune.features.augment import draw_plain
from resp_tune.features.batches import ClipFrames, make_batch
from resp_tune.features.frames import join_frames
from resp_tune.features.logmel import log_mels
from resp_tune.learning.precision import settle_precision
from resp_tune.learning.training import Side, Training, TrainingData

CLASSES = ("low", "high", "noise")


def make_data(config: TrialConfig, recordings: int) -> TrainingData:
    """Tones in noise whose class is their height: synthetic, learnable, no file is read."""
    generator = torch.Generator().manual_seed(0)
    samples = int(20 * config.sample_rate)
    seconds = torch.arange(samples) / config.sample_rate
    labels = torch.arange(recordings) % len(CLASSES)
    mels = []
    for label in labels.tolist():
        hertz = (300.0, 900.0, 0.0)[label] * float(1 + 0.2 * torch.rand(1, generator=generator))
        noise = torch.randn(samples, generator=generator)
        tone = torch.sin(2 * np.pi * hertz * seconds)
        mels.append(log_mels(0.1 * tone + 0.05 * noise, [config.front_end])[0].half())
    frames = join_frames(mels, [str(n) for n in range(recordings)])
    held_out = torch.arange(recordings) % 5 == 4

    def side(chosen: torch.Tensor) -> Side:
        return Side(ClipFrames(frames, frames.first[chosen], frames.count[chosen]), labels[chosen])

    return TrainingData(side(~held_out), side(held_out), CLASSES)


def compare(config: TrialConfig, data: TrainingData, device: torch.device) -> float:
    """Largest difference of the logits of one float32 batch between the CPU and `device`."""
    config = config.replace({"precision": "float32"})
    on_cpu = Training(config, [data])
    on_device = Training(config, [data], device)
    draws = draw_plain(data.validation.clips.count, config)[:16]
    logits = []
    for training in (on_cpu, on_device):
        run = training.runs[0]
        with torch.inference_mode():
            batch = make_batch(run.clips[1], draws.to(run.device), config)
            logits.append(run.network.eval()(batch).cpu())
    return float((logits[0] - logits[1]).abs().max())


def main() -> int:
    """Print what was measured; 1 when the device computes something else than the CPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recordings", type=int, default=920)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else "CPU: no GPU was measured"
    print(f"hardware: {hardware}; torch {torch.__version__}")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    config = preset("notebook").replace(
        {"epochs": args.epochs, "precision": "auto", "augment_validation": False}
    )
    config = settle_precision(config, device.type)
    started = time.perf_counter()
    data = make_data(config, args.recordings)
    print(f"made {args.recordings} recordings in {time.perf_counter() - started:.1f} s")
    difference = compare(config, data, device)
    print(f"largest difference of a logit from the CPU's, float32: {difference:.2e}")
    Training(config.replace({"epochs": 1}), [data], device).run_epoch()  # warm-up
    started = time.perf_counter()
    training = Training(config, [data], device)
    while not training.done:
        last = training.run_epoch()
    seconds = time.perf_counter() - started
    print(
        f"one trial of {args.epochs} epochs, {config.precision}: {seconds:.2f} s "
        f"({60 / seconds:.1f} a minute); validation accuracy {last.metrics['accuracy']:.3f}"
    )
    if difference > 1e-2 or not last.finite:
        print("FAILED: the device does not compute what the CPU computes")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
