"""Check that a GPU computes what the CPU computes, and time the training loop on it.

    python scripts/gpu_check.py              a usual trial: 920 recordings of 20 s at 44.1 kHz
    python scripts/gpu_check.py --recordings 40 --epochs 2        a short run, also without a GPU
    python scripts/gpu_check.py --compile     also what torch.compile costs and saves (CUDA graphs
                                              on a GPU); needs a C++ compiler

Needs only torch, torchaudio and numpy, and no network. Without a GPU the same code runs on the CPU,
and the output says so.
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

from benchmarks.fusing import FusedTraining
from benchmarks.in_memory import InMemoryTraining, synchronize

from resp_tune.config import TrialConfig, preset
from resp_tune.execution.trials_per_gpu import Workload, measure_all
from resp_tune.features.batches import ClipIndex, eval_params, make_batch
from resp_tune.features.logmel import join_frames, log_mels
from resp_tune.training.compute_device import detect_compute_device, resolve_precision
from resp_tune.training.fold_training import SplitTensors, TrainingData
from resp_tune.training.loop import Training
from resp_tune.training.memory import keep_freed_memory

CLASSES = ("low", "high", "noise")
TOLERANCE = 1e-2  # of the logits and of the gradients


def make_data(config: TrialConfig, recordings: int) -> TrainingData:
    """Return synthetic data: tones in noise, whose class is their pitch. No file is read."""
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
    frames = join_frames(mels)
    in_validation = torch.arange(recordings) % 5 == 4

    def split(chosen: torch.Tensor) -> SplitTensors:
        clips = ClipIndex(frames, frames.first[chosen], frames.count[chosen])
        return SplitTensors(clips, labels[chosen])

    return TrainingData(split(~in_validation), split(in_validation), CLASSES)


def compare(config: TrialConfig, data: TrainingData, device: torch.device) -> tuple[float, float]:
    """Compare one batch in float32 on the CPU and on `device`.

    Return the largest absolute difference of a logit, and the norm of the gradients' difference
    relative to their norm.
    """
    config = config.replace({"precision": "float32"})
    draws = eval_params(data.train.clips.count, config)[:16]
    logits, gradients = [], []
    for where in (torch.device("cpu"), device):
        fold = Training(config, [data], where).folds[0]
        network = fold.network.eval()  # dropout and batch statistics differ between devices
        batch = make_batch(fold.clips[0], draws.to(where), config)
        output = network(batch)
        loss = nn.functional.cross_entropy(output, fold.device_labels[draws.clip.to(where)])
        each = torch.autograd.grad(loss, list(network.parameters()))
        logits.append(output.detach().cpu())
        gradients.append(torch.cat([gradient.flatten().cpu() for gradient in each]))
    difference = torch.linalg.vector_norm(gradients[1] - gradients[0])
    return (
        float((logits[1] - logits[0]).abs().max()),
        float(difference / torch.linalg.vector_norm(gradients[0])),
    )


def time_trial(training: Training) -> float:
    """Return the seconds of a whole trial; each epoch ends with its figures on the CPU."""
    started = time.perf_counter()
    while not training.done:
        training.run_epoch()
    return time.perf_counter() - started


def time_fused(
    config: TrialConfig, data: TrainingData, device: torch.device, trials: int, epochs: int
) -> tuple[float, float]:
    """Return the seconds of `epochs` epochs of `trials` networks, one after the other and fused.

    Only the training steps are timed, in float32.
    """
    config = config.replace({"precision": "float32"})
    trainings = [
        InMemoryTraining(Training(config.replace({"seed": n}), [data], device))
        for n in range(trials)
    ]
    fused = FusedTraining(trainings)

    def train_separately() -> None:
        for training in trainings:
            training.train()

    return (
        time_steps(train_separately, epochs, device)[1],
        time_steps(fused.train, epochs, device)[1],
    )


def time_compiled(
    config: TrialConfig, data: TrainingData, device: torch.device, epochs: int
) -> tuple[float, float, float]:
    """Return the seconds of `epochs` epochs' steps plain and compiled, and of compiling.

    The last is the time of the first compiled epoch, which is not part of the second.
    """
    plain, compiled = (InMemoryTraining(Training(config, [data], device)) for _ in range(2))
    # On CUDA this mode records the kernels of a step once and replays them as a graph.
    compiled.fold.network.compile(mode="reduce-overhead", dynamic=False)
    _, plain_seconds = time_steps(plain.train, epochs, device)
    first, compiled_seconds = time_steps(compiled.train, epochs, device)
    return plain_seconds, compiled_seconds, first


def time_steps(train: Callable[[], None], epochs: int, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a first epoch, and of `epochs` more in total."""

    def seconds(epochs: int) -> float:
        started = time.perf_counter()
        for _ in range(epochs):
            train()
        synchronize(device)
        return time.perf_counter() - started

    return seconds(1), seconds(epochs)


def busy_seconds(training: Training) -> float:
    """Return the seconds of an epoch that a CUDA device spends in kernels and copies."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        training.run_epoch()
    return float(sum(event.self_device_time_total for event in profiler.key_averages())) / 1e6


def parse_args() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recordings", type=int, default=920, help="number of recordings")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of a trial")
    parser.add_argument(
        "--packed", default="1,2,4,8", help="numbers of concurrent trials to time; 0: none"
    )
    parser.add_argument(
        "--fused", default="2,4", help="numbers of trials to fuse into one network; 0: none"
    )
    parser.add_argument("--compile", action="store_true", help="also time the compiled steps")
    return parser.parse_args()


def compare_strategies(
    args: argparse.Namespace, config: TrialConfig, data: TrainingData, device: torch.device
) -> None:
    """Print the times of other ways to train: concurrent, fused and compiled."""
    workload = Workload(len(data.train.labels), len(data.validation.labels), len(CLASSES))
    cpus, epochs = os.cpu_count() or 1, args.epochs
    threads = {int(n): max(1, cpus // int(n)) for n in args.packed.split(",") if int(n)}
    for trials, rate in measure_all(config, workload, device.type, threads, epochs).items():
        print(f"{trials} at once: {60 * rate / epochs:.1f} trials per minute")
    for trials in (int(n) for n in args.fused.split(",") if int(n)):
        separate, fused = time_fused(config, data, device, trials, epochs)
        print(
            f"the steps of {trials} trials of one shape, float32: one by one {separate:.2f} s, "
            f"fused into one network {fused:.2f} s"
        )
    if args.compile:
        plain, compiled, first = time_compiled(config, data, device, epochs)
        print(
            f"the steps of {epochs} epochs: {plain:.2f} s, compiled {compiled:.2f} s after a first "
            f"epoch of {first:.1f} s"
        )


def main() -> int:
    """Print the figures; return 1 if the device's results differ from the CPU's."""
    args = parse_args()
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
    print(f"relative difference of the gradients from the CPU's, float32: {gradient:.2e}")

    Training(config.replace({"epochs": 1}), [data], device).run_epoch()  # warm-up
    training = Training(config, [data], device)
    seconds = time_trial(training)
    last = training.history[-1]
    print(
        f"one trial of {args.epochs} epochs, {config.precision}: {seconds:.2f} s "
        f"({60 / seconds:.1f} per minute); validation accuracy {last.metrics['accuracy']:.3f}"
    )
    in_memory = InMemoryTraining(Training(config, [data], device))
    _, limit = time_steps(in_memory.epoch, args.epochs, device)
    print(
        f"the same steps on batches in memory: {limit:.2f} s; "
        f"the trial takes {seconds / limit:.2f} times as long"
    )
    if gpu:
        busy = busy_seconds(Training(config, [data], device))
        print(f"share of an epoch that the GPU is busy: {busy * args.epochs / seconds:.2f}")
    compare_strategies(args, config, data, device)
    # Written so that NaN fails.
    if not (logit <= TOLERANCE and gradient <= TOLERANCE and last.finite):
        print("FAILED: the device's results differ from the CPU's")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
