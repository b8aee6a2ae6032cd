"""Check a GPU with the training loop alone, and time it.

    python scripts/gpu_check.py              one trial's size: 920 recordings of 20 s at 44.1 kHz
    python scripts/gpu_check.py --recordings 40 --epochs 2        a look, also without a GPU
    python scripts/gpu_check.py --compile     also what compiling costs and saves, on a GPU with its
                                              kernels as CUDA graphs; needs a C++ compiler

Needs torch, torchaudio and numpy, and no network. Without a GPU it runs the same code on the CPU
and says that it measured no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fusing import Fused
from benchmarks.limit import Limit, wait

from resp_tune.config import TrialConfig, preset
from resp_tune.execution.trials_per_gpu import Workload, measure_all
from resp_tune.features.augment import eval_params
from resp_tune.features.batches import ClipIndex, make_batch
from resp_tune.features.logmel import join_frames, log_mels
from resp_tune.training.compute_device import detect_compute_device, resolve_precision
from resp_tune.training.loop import SplitTensors, Training, TrainingData
from resp_tune.training.memory import keep_freed_memory

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

    def side(chosen: torch.Tensor) -> SplitTensors:
        return SplitTensors(
            ClipIndex(frames, frames.first[chosen], frames.count[chosen]), labels[chosen]
        )

    return TrainingData(side(~held_out), side(held_out), CLASSES)


def compare(config: TrialConfig, data: TrainingData, device: torch.device) -> tuple[float, float]:
    """Between the CPU and `device`, float32, one batch: the largest difference of a logit, and of
    the gradients as a share of their length.
    """
    config = config.replace({"precision": "float32"})
    draws = eval_params(data.train.clips.count, config)[:16]
    logits, gradients = [], []
    for place in (torch.device("cpu"), device):
        run = Training(config, [data], place).folds[0]
        network = run.network.eval()  # dropout differs by device, and so do batch statistics
        batch = make_batch(run.clips[0], draws.to(place), config)
        found = network(batch)
        nn.functional.cross_entropy(found, run.device_labels[draws.clip.to(place)]).backward()
        logits.append(found.detach().cpu())
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in network.parameters()]))
    difference = torch.linalg.vector_norm(gradients[1] - gradients[0])
    return (
        float((logits[1] - logits[0]).abs().max()),
        float(difference / torch.linalg.vector_norm(gradients[0])),
    )


def time_trial(training: Training) -> float:
    """Seconds of a whole trial; an epoch ends with its figures on the CPU."""
    started = time.perf_counter()
    while not training.done:
        training.run_epoch()
    return time.perf_counter() - started


def time_fused(
    config: TrialConfig, data: TrainingData, device: torch.device, trials: int, epochs: int
) -> tuple[float, float]:
    """Seconds of `epochs` epochs' steps of so many networks, one after the other and fused; both
    in float32.
    """
    config = config.replace({"precision": "float32"})
    runs = [Training(config.replace({"seed": n}), [data], device) for n in range(trials)]
    limits = [Limit(run) for run in runs]
    fused = Fused(limits)

    def one_by_one() -> None:
        for limit in limits:
            limit.train()

    return time_steps(one_by_one, epochs, device)[1], time_steps(fused.train, epochs, device)[1]


def time_compiled(
    config: TrialConfig, data: TrainingData, device: torch.device, epochs: int
) -> tuple[float, float, float]:
    """Seconds of `epochs` epochs' steps as they are and compiled, and of the first compiled epoch
    before them.
    """
    plain, compiled = (Limit(Training(config, [data], device)) for _ in range(2))
    # On CUDA this mode records the kernels of a step once and replays them as graphs.
    compiled.run.network.compile(mode="reduce-overhead", dynamic=False)
    _, as_it_is = time_steps(plain.train, epochs, device)
    first, after = time_steps(compiled.train, epochs, device)
    return as_it_is, after, first


def time_steps(train: Callable[[], None], epochs: int, device: torch.device) -> tuple[float, float]:
    """Seconds of the first epoch, and of `epochs` more in all."""

    def seconds(epochs: int) -> float:
        started = time.perf_counter()
        for _ in range(epochs):
            train()
        wait(device)
        return time.perf_counter() - started

    return seconds(1), seconds(epochs)


def busy_seconds(training: Training) -> float:
    """Seconds of an epoch that a CUDA device spent in kernels and copies."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        training.run_epoch()
    return sum(event.self_device_time_total for event in seen.key_averages()) / 1e6


def flags() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recordings", type=int, default=920)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--packed", default="1,2,4,8", help="trials at once; 0: none")
    parser.add_argument("--fused", default="2,4", help="trials of one shape as one; 0: none")
    parser.add_argument("--compile", action="store_true", help="time the steps compiled too")
    return parser.parse_args()


def compare_ways(
    args: argparse.Namespace, config: TrialConfig, data: TrainingData, device: torch.device
) -> None:
    """Print what other ways of training the same give: packed, fused, compiled."""
    load = Workload(len(data.train.labels), len(data.validation.labels), len(CLASSES))
    cpus, epochs = os.cpu_count() or 1, args.epochs
    threads = {int(n): max(1, cpus // int(n)) for n in args.packed.split(",") if int(n)}
    for packed, rate in measure_all(config, load, device.type, threads, epochs).items():
        print(f"{packed} at once: {60 * rate / epochs:.1f} trials a minute")
    for trials in (int(n) for n in args.fused.split(",") if int(n)):
        apart, fused = time_fused(config, data, device, trials, epochs)
        print(
            f"the steps of {trials} trials of one shape, float32: one by one {apart:.2f} s, fused "
            f"into one network {fused:.2f} s"
        )
    if args.compile:
        plain, compiled, first = time_compiled(config, data, device, epochs)
        print(
            f"the steps of {epochs} epochs: {plain:.2f} s, compiled {compiled:.2f} s after a first "
            f"epoch of {first:.1f} s"
        )


def main() -> int:
    """Print what was measured; 1 when the device computes something else than the CPU."""
    args = flags()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    hardware = torch.cuda.get_device_name() if gpu else "CPU: no GPU was measured"
    print(f"hardware: {hardware}; {os.cpu_count()} cores; torch {torch.__version__}")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    config = preset("notebook").replace(
        {"epochs": args.epochs, "precision": "auto", "augment_validation": False}
    )
    config = resolve_precision(config, detect_compute_device(device.type))
    keep_freed_memory()
    started = time.perf_counter()
    data = make_data(config, args.recordings)
    print(f"made {args.recordings} recordings in {time.perf_counter() - started:.1f} s")
    logit, gradient = compare(config, data, device)
    print(f"largest difference of a logit from the CPU's, float32: {logit:.2e}")
    print(f"difference of the gradients from the CPU's, float32: {gradient:.2e} of their length")

    Training(config.replace({"epochs": 1}), [data], device).run_epoch()  # warm-up
    training = Training(config, [data], device)
    seconds = time_trial(training)
    last = training.history[-1]
    print(
        f"one trial of {args.epochs} epochs, {config.precision}: {seconds:.2f} s "
        f"({60 / seconds:.1f} a minute); validation accuracy {last.metrics['accuracy']:.3f}"
    )
    steps = Limit(Training(config, [data], device)).epoch
    _, limit = time_steps(steps, args.epochs, device)
    over = seconds / limit
    print(
        f"the same steps on batches in memory: {limit:.2f} s; the trial takes {over:.2f} times that"
    )
    if gpu:
        busy = busy_seconds(Training(config, [data], device))
        print(f"share of an epoch that the GPU is busy: {busy * args.epochs / seconds:.2f}")
    compare_ways(args, config, data, device)
    if not (logit <= 1e-2 and gradient <= 1e-2 and last.finite):  # NaN is neither
        print("FAILED: the device does not compute what the CPU computes")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
