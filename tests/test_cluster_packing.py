"""`--trials-per-gpu auto` on a cluster whose hosts have other GPUs; what they bear is pretended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clusters import EPOCHS, check_whole, command_line, data, end
from support.gates import allow, epochs_done, gated
from support.hosts import Host, Network, why_not
from support.searches import files_below, study, wait_for

UNAVAILABLE = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(UNAVAILABLE is not None, reason=UNAVAILABLE or ""),
]
__all__ = ["data"]  # a fixture

# What a host says of itself; the driver takes its logical GPUs for real ones.
MEASURES = """
    import os
    def measure(config, load, device, trials, *, epochs, threads):
        import ray
        assert len(ray.get_gpu_ids()) == 1
        with open(os.environ["MEASURED"], "a") as file:
            print(os.environ["PAYS"], trials, threads, file=file)
        pays = int(os.environ["PAYS"])
        return packing.Packed(trials, float(min(trials, pays)))
    packing.measure = measure
"""
# What a trial was given there.
PLACED = """
    import os
    device = trainable._device
    def placed(work):
        with open(os.environ["PLACED"], "a") as file:
            print(os.environ["PAYS"], work.gpus, file=file)
        return device(work)
    trainable._device = placed
"""
REAL = "packed.measurable = lambda prepared: True"
AUTO = ("--trials-per-gpu", "auto")


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("gate")
    hooks = gated(
        folder, learning__packing=MEASURES, searching__packed=REAL, tuning__trainable=PLACED
    )
    told = {"MEASURED": str(folder / "measured"), "PLACED": str(folder / "placed")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**hooks, **told}.items():
            patch.setenv(name, value)
        allow(folder)
        yield folder


@pytest.fixture(autouse=True)
def _anew(gate: Path) -> None:
    for name in ("measured", "placed", "epochs"):
        (gate / name).write_text("")


def has(host: Host, gpu: str, pays: int) -> None:
    """`host` as a worker with two GPUs of that type, of which each bears `pays` trials."""
    host.env = {"PAYS": str(pays)}
    host.worker(f'--resources={{"accelerator_type:{gpu}": 1}}', cpus=4)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, gate: Path) -> Iterator[Network]:
    """A head that runs no trials, and two hosts with two GPUs each, of different types."""
    with Network(tmp_path_factory.mktemp("net"), 4) as network:
        network.head.head()
        has(network.hosts[1], "H100", 2)
        has(network.hosts[2], "T4", 1)
        yield network


def test_a_dry_run_measures_nothing(net: Network, data: Path, gate: Path, tmp_path: Path) -> None:
    args = (*AUTO, "--dry-run", "--tracking-uri", f"sqlite:///{tmp_path}/m.db")
    done = net.head.run(*command_line(net, tmp_path / "r", data, *args))
    assert done.returncode == 0, done.stderr
    for host in net.hosts[:3]:
        assert f"({host.address})" in done.stdout
    assert "trials per GPU" not in done.stderr
    assert (gate / "measured").read_text() == ""
    assert files_below(tmp_path) == set()


def test_each_type_takes_its_own_number_and_hands_its_trials_over_when_it_is_lost(
    net: Network, data: Path, gate: Path, tmp_path: Path
) -> None:
    """Two on each of two H100, one on each of two T4 and on what joins; then the T4 are gone."""
    args = (*AUTO, "--trials", "8", "--epochs", str(EPOCHS), "--name", "typed")
    out = tmp_path / "out"
    allow(gate, of_each=4)
    running = net.head.start(*command_line(net, tmp_path, data, *args), out=out)
    lost, new = net.hosts[2:]
    try:
        wait_for(lambda: len(epochs_done(gate)) >= 6 * 4)
        assert len(study(tmp_path, "typed").get_trials()) == 6
        placed = Counter((gate / "placed").read_text().splitlines())
        assert placed["2 0.5"] == 4
        assert placed["1 1.0"] + placed["2 1.0"] == 2 + 1, "the canary has a whole one"
        new.env = {"PAYS": "9"}
        new.worker(cpus=4)  # nobody has measured it, and Ray has no name for its GPUs
        wait_for(lambda: len(epochs_done(gate)) >= 8 * 4)
        placed = Counter((gate / "placed").read_text().splitlines())
        assert (placed["9 1.0"], placed["9 0.5"]) == (2, 0)
        lost.kill()
        wait_for(lambda: "no GPU of type T4 is left" in out.read_text(), 120)
        allow(gate)
        assert running.wait(timeout=400) == 0, out.read_text()
    finally:
        end(running)
        allow(gate)
        new.kill()
    text = out.read_text()
    assert "Traceback" not in text
    assert text.count("trials per GPU: 2 on H100 (epochs a second of so many at once: 1: 1.0") == 1
    assert text.count("trials per GPU: 1 on T4 (") == 1
    measured = sorted((gate / "measured").read_text().splitlines())
    assert measured == ["1 1 2", "1 2 1", "2 1 2", "2 2 1"], "pays, trials, threads: once a type"
    assert text.count("no GPU of type T4 is left: the trials that ran are handed out anew") == 1
    joined = f"trials per GPU: 1 on {new.address}, which joined after the others were measured"
    assert text.count(joined) == 1
    check_whole(tmp_path, "typed", 8)
    seeds = [t.user_attrs["seed"] for t in study(tmp_path, "typed").get_trials()]
    begun = [epochs_done(gate).count(f"{seed} 1") for seed in seeds]
    assert begun == [1] * 8, "all went on from their checkpoints"


def test_what_cannot_be_measured_is_one_line(net: Network, data: Path, tmp_path: Path) -> None:
    """One of two types: what it is made to bear is no number."""
    broken = net.hosts[3]
    broken.env = {"PAYS": "much"}
    broken.worker('--resources={"accelerator_type:A10": 1}', cpus=4)
    try:
        done = net.head.run(*command_line(net, tmp_path, data, *AUTO, "--trials", "1"))
    finally:
        broken.kill()
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "could not be measured on A10, so none was started: ValueError" in error
    assert "Traceback" not in done.stderr
