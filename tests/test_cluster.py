"""A search on a real cluster: several hosts on this machine, each with its own Ray and address."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clusters import ARGS, EPOCHS, check_whole, command_line, data, end
from support.encoders import save_encoder
from support.gates import allow, epochs_done, gated
from support.hosts import AUTH, DASHBOARD_PORT, Host, Network, why_not
from support.searches import files_below, study, wait_for

import resp_tune
from resp_tune.common.fault_points import JOURNAL

UNAVAILABLE = why_not()
pytestmark = [
    pytest.mark.xdist_group("cluster"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(UNAVAILABLE is not None, reason=UNAVAILABLE or ""),
]
__all__ = ["data"]  # a fixture
LOST = "its node was lost; it resumes from its checkpoint"


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where epochs wait, on every host that is started from now on."""
    folder = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in gated(folder).items():
            patch.setenv(name, value)
        yield folder


@pytest.fixture(autouse=True)
def _open(gate: Path) -> Iterator[None]:
    """Nobody waits, but where a test says so."""
    allow(gate)
    (gate / JOURNAL).write_text("")
    yield
    allow(gate)


def wait_for_epochs(gate: Path, count: int) -> None:
    wait_for(lambda: len(epochs_done(gate)) >= count)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, gate: Path) -> Iterator[Network]:
    """A head that runs no trials, and two workers with two logical GPUs each."""
    with Network(tmp_path_factory.mktemp("net"), 4) as network:
        network.head.head(jobs=True)
        for host in network.hosts[1:3]:
            host.worker()
        yield network


def errors(text: str) -> list[str]:
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.mark.thorough
def test_four_gpus_on_two_hosts_run_four_trials_at_once(
    net: Network, data: Path, gate: Path, tmp_path: Path
) -> None:
    args = ("--gpus", "4", "--trials", "5", "--epochs", str(EPOCHS), "--name", "four")
    line, out = command_line(net, tmp_path, data, *args), tmp_path / "out"
    allow(gate, of_each=4)
    running = net.head.start(*line, out=out)
    wait_for_epochs(gate, 4 * 4)  # four wait, each on a GPU
    assert len(study(tmp_path, "four").get_trials()) == 4
    allow(gate)
    try:
        assert running.wait(timeout=400) == 0, out.read_text()
    finally:
        end(running)
    text = out.read_text()
    assert "4 trials at once, each on 0.5 CPU and 1 GPU" in text
    assert text.splitlines()[-1] == str(tmp_path / "four" / "summary.json")
    for host in net.hosts[1:3]:
        filled = [
            li for li in text.splitlines() if li.startswith("cache of") and host.address in li
        ]
        assert len(filled) == 1, "once a node"
        assert "1 front ends computed" in filled[0]
    check_whole(tmp_path, "four", 5)
    again = net.head.run(*line)
    assert again.returncode == 0, again.stderr
    assert "5 trials have ended already" in again.stderr


@pytest.mark.thorough
def test_more_gpus_than_there_are(net: Network, data: Path, tmp_path: Path) -> None:
    done = net.head.run(*command_line(net, tmp_path, data, "--gpus", "9"))
    assert done.returncode == 2
    assert "has 4 GPUs: give --gpus 4" in errors(done.stderr)[0]
    waited = net.head.run(
        *command_line(net, tmp_path, data, "--gpus", "9", "--wait-for-gpus", "3s")
    )
    assert waited.returncode == 2
    assert "3 s later" in errors(waited.stderr)[0]
    assert files_below(tmp_path) == set()


@pytest.mark.thorough
def test_a_dry_run_asks_every_node_and_leaves_nothing(
    net: Network, data: Path, tmp_path: Path
) -> None:
    args = ("--dry-run", "--tracking-uri", f"sqlite:///{tmp_path}/m.db")
    done = net.head.run(*command_line(net, tmp_path / "r", data, *args))
    assert done.returncode == 0, done.stderr
    for host in net.hosts[:3]:
        assert f"({host.address})" in done.stdout
    assert done.stdout.count("✓") == 3 * 3
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize(
    ("token", "said"), [("", "requires a token"), ("x" * 64, "refuses this token")]
)
@pytest.mark.thorough
def test_without_the_token_nobody_comes_in(
    token: str, said: str, net: Network, data: Path, tmp_path: Path
) -> None:
    env = {"RAY_AUTH_TOKEN": token, "HOME": str(tmp_path)}  # where a token file may lie
    done = net.head.run(*command_line(net, tmp_path / "r", data), **env)
    assert done.returncode == 2
    assert said in errors(done.stderr)[0]
    assert not (tmp_path / "r").exists()


@pytest.mark.thorough
def test_a_machine_outside_the_cluster_is_told_so(net: Network, data: Path, tmp_path: Path) -> None:
    done = net.hosts[3].run(*command_line(net, tmp_path / "r", data))
    assert done.returncode == 2
    assert "none of that cluster's nodes" in errors(done.stderr)[0]
    assert f"ray start --address={net.address}" in errors(done.stderr)[0]


def with_another_node(host: Host, **env: str) -> Host:
    """`host` as a node of the cluster, with other folders or settings than the rest."""
    host.kill()
    host.env = env
    host.worker()
    return host


def left(net: Network, host: Host, alive: int = 3) -> None:
    """Wait until the cluster has noticed that `host` is gone, and how many are `alive`."""
    host.kill()
    code = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); "
    code += "print(sum(n['Alive'] for n in ray.nodes()))"
    wait_for(lambda: net.head.run(sys.executable, "-c", code, net.address)
             .stdout.split()[-1:] == [str(alive)], 60)  # fmt: skip


@pytest.mark.thorough
def test_storage_that_a_node_does_not_see(net: Network, data: Path, tmp_path: Path) -> None:
    storage = tmp_path / "only-here"
    storage.mkdir()
    host = net.hosts[3]
    host.cover = (storage,)
    with_another_node(host)
    try:
        done = net.head.run(*command_line(net, storage, data, "--trials", "1"))
    finally:
        host.cover = ()
        left(net, host)
    assert done.returncode == 2
    error = errors(done.stderr)[0]
    assert f"({host.address}) is not the driver's folder" in error
    assert "give a folder that all nodes share" in error
    assert files_below(storage) == set()


@pytest.mark.slow
def test_recordings_that_a_node_does_not_see_are_lent(
    net: Network, data: Path, tmp_path: Path
) -> None:
    host = net.hosts[3]
    host.cover = (data.parent,)
    with_another_node(host)
    args = ("--trials", "6", "--epochs", str(EPOCHS), "--name", "lent")
    try:
        done = net.head.run(*command_line(net, tmp_path, data, *args))
    finally:
        host.cover = ()
        left(net, host)
    assert done.returncode == 0, done.stderr
    table = " ".join(done.stderr.split())
    assert "sent by the driver" in table
    assert "MB sent to nodes that cannot read them" in done.stderr
    kept = list((host.folder / "cache" / "recordings").iterdir())
    searched = json.loads((tmp_path / "lent" / "recordings.json").read_text())
    assert len(kept) == len(searched) < 60, "what the search reads, and no test recording"
    assert not list((net.hosts[1].folder / "cache").glob("recordings/*")), "that host sees them"
    check_whole(tmp_path, "lent", 6)


@pytest.mark.slow
def test_an_encoder_that_a_node_does_not_see_is_sent(
    net: Network, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "encoders"
    folder.mkdir()
    encoder = save_encoder(folder / "tiny.onnx")
    (tmp_path / "space.yaml").write_text(
        f"fixed: {{encoder: {encoder}, f_max: 1900.0, head: mlp}}\n"
        "parameters: {lr: {type: float, low: 0.001, high: 0.01}}\n"
    )
    host = net.hosts[3]
    host.cover = (data.parent, folder)
    with_another_node(host)
    args = ("--trials", "6", "--epochs", str(EPOCHS), "--name", "sent")
    try:
        line = command_line(net, tmp_path, data, *args, "--space", str(tmp_path / "space.yaml"))
        done = net.head.run(*line)
    finally:
        host.cover = ()
        left(net, host)
    assert done.returncode == 0, done.stderr
    kept = [file.read_bytes() for file in (host.folder / "cache" / "recordings").iterdir()]
    assert encoder.read_bytes() in kept
    check_whole(tmp_path, "sent", 6)


def other_code(folder: Path) -> Path:
    """A copy of resp_tune in which a line is changed."""
    shutil.copytree(Path(resp_tune.__file__).parent, folder / "resp_tune")
    with (folder / "resp_tune" / "errors.py").open("a") as file:
        file.write("# changed here only\n")
    return folder


@pytest.mark.slow
def test_other_code_on_a_node(net: Network, data: Path, tmp_path: Path) -> None:
    host = with_another_node(net.hosts[3], PYTHONPATH=str(other_code(tmp_path / "other")))
    try:
        # From another folder: where the driver's own lies on a node too, Ray imports from there.
        space = str(Path("search_spaces/smoke.yaml").absolute())
        line = command_line(net, tmp_path / "r", data, "--trials", "1", "--space", space)
        done = net.head.run("env", "-C", str(tmp_path), *line)
    finally:
        host.env = {}
        left(net, host)
    assert done.returncode == 2
    assert "other code of resp_tune" in errors(done.stderr)[0]
    assert host.address in errors(done.stderr)[0]


@pytest.mark.thorough
def test_a_node_with_other_code_joins(net: Network, data: Path, gate: Path, tmp_path: Path) -> None:
    """It was not there to be asked before the first trial; nothing is trained by it."""
    space = str(Path("search_spaces/smoke.yaml").absolute())
    args = ("--trials", "6", "--epochs", str(EPOCHS), "--name", "late", "--space", space)
    line, out = command_line(net, tmp_path / "r", data, *args), tmp_path / "out"
    host = net.hosts[3]
    allow(gate, of_each=4)
    running = net.head.start("env", "-C", str(tmp_path), *line, out=out)
    try:
        wait_for_epochs(gate, 4 * 4)
        with_another_node(host, PYTHONPATH=str(other_code(tmp_path / "other")))
        assert running.wait(timeout=120) == 1, out.read_text()
    finally:
        end(running)
        host.env = {}
        left(net, host)
    (error,) = errors(out.read_text())
    assert f"({host.address}) has joined with other code of resp_tune" in error
    assert len(epochs_done(gate)) == 4 * 4
    allow(gate)
    done = net.head.run("env", "-C", str(tmp_path), *line)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path / "r", "late", 6)


@pytest.mark.slow
def test_a_host_is_cut_off_and_another_joins(
    net: Network, data: Path, gate: Path, tmp_path: Path
) -> None:
    """Its trials finish elsewhere, the newcomer is used, each trial and epoch is there once."""
    args = ("--trials", "8", "--epochs", str(EPOCHS), "--name", "cut")
    out = tmp_path / "out"
    allow(gate, of_each=4)
    running = net.head.start(*command_line(net, tmp_path, data, *args), out=out)
    lost, new = net.hosts[2], net.hosts[3]
    try:
        wait_for_epochs(gate, 4 * 4)
        lost.link("down")
        new.worker()
        wait_for(lambda: out.read_text().count(LOST) == 2)
        # The other host's trials wait on: only the newcomer has room for those of the lost one.
        wait_for(lambda: any((new.folder / "cache" / "features").glob("*/frames.f16")))
        allow(gate)
        assert running.wait(timeout=400) == 0, out.read_text()
    finally:
        end(running)
        lost.kill()
        lost.link("up")
        left(net, new)
    assert out.read_text().count(LOST) == 2
    assert "Traceback" not in out.read_text()
    check_whole(tmp_path, "cut", 8)
    micro = [t.user_attrs["config"]["micro_batch"] for t in study(tmp_path, "cut").get_trials()]
    assert micro == [None] * 8, "a lost node says nothing about memory"
    lost.worker()  # for the tests that follow, and that it can come back


@pytest.mark.thorough
def test_a_search_waits_for_a_host_that_comes_back(
    net: Network, data: Path, gate: Path, tmp_path: Path
) -> None:
    args = ("--trials", "4", "--epochs", str(EPOCHS), "--name", "waits", "--gpus", "4")
    line, out = (
        [*command_line(net, tmp_path, data, *args), "--wait-for-gpus", "3m"],
        tmp_path / "out",
    )
    host = net.hosts[2]
    allow(gate, of_each=4)
    left(net, host, alive=2)
    running = net.head.start(*line, out=out)
    try:
        wait_for(lambda: "has 2 GPUs: waiting 180 s for 4" in out.read_text())
        assert not (tmp_path / "waits").exists()
        host.worker()
        wait_for_epochs(gate, 4 * 4)  # four wait, each on a GPU: two of them on that host
        allow(gate)
        assert running.wait(timeout=400) == 0, out.read_text()
    finally:
        end(running)
        if len(host.pids()) == 0:
            host.worker()  # for the tests that follow
    check_whole(tmp_path, "waits", 4)


@pytest.mark.thorough
def test_a_drained_node_hands_its_trials_over(
    net: Network, data: Path, gate: Path, tmp_path: Path
) -> None:
    """As a cloud takes a spot instance back: with a reason, and the end a little later."""
    args = ("--trials", "5", "--epochs", str(EPOCHS), "--name", "drained", "--gpus", "5")
    out, host = tmp_path / "out", net.hosts[3]
    host.worker(gpus=1)
    code = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(*(n['NodeID'] "
    code += "for n in ray.nodes() if n['Alive'] and n['NodeManagerAddress'] == sys.argv[2]))"
    node = net.head.run(sys.executable, "-c", code, net.address, host.address).stdout.split()[-1]
    allow(gate, of_each=4)
    running = net.head.start(*command_line(net, tmp_path, data, *args), out=out)
    try:
        wait_for_epochs(gate, 5 * 4)
        drained = net.head.run(
            sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", net.address,
            "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message", "a spot instance is taken back",
            "--deadline-remaining-seconds", "3",
        )  # fmt: skip
        assert drained.returncode == 0, drained.stdout + drained.stderr
        time.sleep(4)
        left(net, host)
        # Of a host that ends process by process, Ray may notice the worker first.
        wait_for(lambda: "was lost; it resumes from its checkpoint" in out.read_text())
        allow(gate)
        assert running.wait(timeout=400) == 0, out.read_text()
    finally:
        end(running)
        host.kill()
    assert out.read_text().count("was lost; it resumes from its checkpoint") == 1
    assert "Traceback" not in out.read_text()
    check_whole(tmp_path, "drained", 5)


@pytest.mark.thorough
def test_a_job_survives_its_laptop(net: Network, data: Path, gate: Path, tmp_path: Path) -> None:
    """Handed over by the job API: refused without the token, goes on with the same name."""
    outside = net.hosts[3]
    jobs = f"http://{net.head.address}:{DASHBOARD_PORT}"
    job = (sys.executable, "-m", "ray.scripts.scripts", "job")
    env = json.dumps({"env_vars": {"RESP_TUNE_LOGICAL_GPUS": "1"}})
    submit = (*job, "submit", "--address", jobs, "--runtime-env-json", env)
    args = ("--storage", str(tmp_path), "--data", str(data), *ARGS, "--name", "job",
            "--epochs", str(EPOCHS), "--trials")  # fmt: skip
    search = ("--", sys.executable, "-m", "resp_tune.search", *args)
    refused = outside.run(*submit, *search, "4", RAY_AUTH_TOKEN="x" * 64)  # a wrong one
    assert refused.returncode != 0
    assert not (tmp_path / "job").exists()
    out = tmp_path / "out"
    allow(gate, of_each=4)
    laptop = outside.start(*submit, *search, "4", out=out)
    wait_for_epochs(gate, 4 * 4)
    assert ", of this job: " in " ".join(out.read_text().split()), "logs are streamed"
    os.killpg(laptop.pid, 9)  # the laptop is closed
    allow(gate)
    wait_for(lambda: (tmp_path / "job" / "summary.json").exists())
    check_whole(tmp_path, "job", 4)
    allow(gate, of_each=4)
    no_wait = (*submit, "--no-wait", "--submission-id", "stopped")
    begun = outside.run(*no_wait, *search, "5")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for_epochs(gate, 4 * EPOCHS + 4)
    ended = outside.run(*job, "stop", "--address", jobs, "stopped")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    logs = outside.run(*job, "logs", "--address", jobs, "stopped").stdout
    assert "rerun the same command with --name job to resume" in logs, "as Ctrl-C would"
    allow(gate)
    more = outside.run(*submit, *search, "5")
    assert more.returncode == 0, more.stdout + more.stderr
    assert "resuming: 4 trials have ended already; 1 were interrupted" in more.stdout
    assert str(tmp_path / "job" / "summary.json") in more.stdout
    check_whole(tmp_path, "job", 5)


def redis(host: Host, folder: Path) -> None:
    """A Redis on `host`, for the head's control store."""
    folder.mkdir(exist_ok=True)
    host.start(
        "redis-server", "--bind", host.address, "--port", "6390", "--dir", str(folder),
        "--requirepass", AUTH["RAY_AUTH_TOKEN"], "--appendonly", "yes", out=folder / "log",
    )  # fmt: skip
    wait_for(lambda: "Ready to accept" in (folder / "log").read_text(), 20)


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
def test_the_head_is_killed_and_comes_back(data: Path, gate: Path, tmp_path: Path) -> None:
    """With Redis behind its control store the search goes on; its driver is on another host."""
    storage, out = tmp_path / "r", tmp_path / "out"
    args = ("--trials", "4", "--epochs", str(EPOCHS), "--name", "headless")
    with Network(tmp_path / "net", 3) as net:
        head, worker, store = net.hosts
        redis(store, tmp_path / "redis")
        env = {"RAY_REDIS_ADDRESS": f"{store.address}:6390"}
        password = f"--redis-password={AUTH['RAY_AUTH_TOKEN']}"
        head.head(password, **env)
        worker.worker(cpus=2)
        allow(gate, of_each=4)
        running = worker.start(*command_line(net, storage, data, *args), out=out)
        wait_for_epochs(gate, 2 * 4)
        head.kill()
        time.sleep(3)
        head.head(password, **env)
        allow(gate)
        assert running.wait(timeout=400) == 0, out.read_text()
    assert "Traceback" not in out.read_text()
    check_whole(storage, "headless", 4)


@pytest.mark.thorough
def test_without_redis_a_new_cluster_goes_on(data: Path, gate: Path, tmp_path: Path) -> None:
    storage, out = tmp_path / "r", tmp_path / "out"
    args = ("--trials", "4", "--epochs", str(EPOCHS), "--name", "moved")
    allow(gate, of_each=4)
    with Network(tmp_path / "old", 2) as net:
        net.head.head()
        net.hosts[1].worker(cpus=2)
        net.hosts[1].start(*command_line(net, storage, data, *args), out=out)
        wait_for_epochs(gate, 2 * 4)
        for host in net.hosts:
            host.kill()
    allow(gate)
    with Network(tmp_path / "new", 2) as net:
        net.head.head()
        net.hosts[1].worker(cpus=2)
        done = net.head.run(*command_line(net, storage, data, *args))
    assert done.returncode == 0, done.stderr
    assert "2 were interrupted" in done.stderr
    check_whole(storage, "moved", 4)
