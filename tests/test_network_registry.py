"""Networks by name: built in, of an installed package, and packages that cannot be used."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.audits import few_trees
from support.bundles import save_networks
from support.instant import InstantBackend, run_small, search_here, small_spec
from support.networks import install_example, offer
from support.searches import command, search, summary
from support.toy import CLASSES, fingerprint, toy_config, toy_folds, toy_side, trained
from torch import nn

from resp_tune.cluster.node_probe import NodeRequirements
from resp_tune.config import TrialConfig
from resp_tune.errors import UserError
from resp_tune.harness.spec import SearchSpec
from resp_tune.space.search_space import load_space
from resp_tune.tracking.registry import fetch_bundle
from resp_tune.training.loop import Training
from resp_tune.training.model_bundle import load_bundle
from resp_tune.training.networks.network import SoundNet
from resp_tune.training.networks.network_registry import (
    build_network,
    check_network,
    network_origin,
)
from resp_tune.training.networks.resnet import ResidualBlock, ResNet

BOTH = pytest.mark.parametrize("name", ["resnet", "temporal"])
SMALL = "{n_mels: 16, width: 2, clip_seconds: 1.0, sample_rate: 4000, batch_size: 8"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_example(tmp_path_factory.mktemp("networks"))


@pytest.fixture
def example(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(site))
    return site


def spec_of(folder: Path, parameters: str, fixed: str = "", *flags: str) -> SearchSpec:
    space = folder / "space.yaml"
    space.write_text(f"fixed: {SMALL}{fixed}}}\nparameters: {{{parameters}}}\n")
    return small_spec(folder, *flags, "--space", str(space))


# Built in


def test_the_default_is_the_notebooks() -> None:
    network = build_network(TrialConfig(), 6)
    assert type(network) is SoundNet
    assert network_origin("notebook").distribution == "resp-tune"
    old = {k: v for k, v in TrialConfig().as_dict().items() if k != "network"}
    assert TrialConfig.from_saved({**old, "resampling": "kaiser"}) == TrialConfig()


@pytest.mark.parametrize(("depth", "widest"), [(2, 8), (3, 16), (4, 32), (7, 32)])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_residual_network_honours_its_fields(depth: int, widest: int, channels: int) -> None:
    config = TrialConfig(network="resnet", width=4, depth=depth, dropout=0.3, channels=channels)
    network = build_network(config, 5)
    assert isinstance(network, ResNet)
    assert network.stem[0].weight.shape == (4, channels, 5, 5)
    blocks = [m for m in network.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == depth - 1
    assert network.head[1].in_features == widest
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.3]
    for shape in ((2, 1, 1, 1), (2, 1, 313, 48), (2, 1, 7, 80)):
        assert network.eval()(torch.randn(shape)).shape == (2, 5)


def test_a_residual_block_adds_its_shortcut() -> None:
    block = ResidualBlock(3, 6).eval()
    x = torch.randn(2, 3, 9, 8)
    assert block(x).shape == (2, 6, 5, 4)
    nn.init.zeros_(block.residual[4].weight)
    assert torch.equal(block(x), torch.relu(block.shortcut(x)))


# Any network


@BOTH
def test_it_trains_with_everything_switched_on(name: str, example: Path, tmp_path: Path) -> None:
    """Band statistics, averaged weights, micro-batches, and a resumption with the same bits."""
    config = toy_config(network=name, normalise="band", ema=0.9, micro_batch=4, seed=3)
    folds = toy_folds(config, 2)
    whole = trained(config, folds)
    first = Training(config, folds)
    first.run_epoch()
    resumed = Training(config, folds)
    resumed.load_state(first.state())
    while not resumed.done:
        resumed.run_epoch()
    assert fingerprint(resumed) == fingerprint(whole)
    network = whole.networks()[0]
    assert network.bands.sd.min() > 0
    x = torch.randn(3, 1, 16, 16) * 10 - 40
    plain = network.network((x - network.bands.mean) / network.bands.sd)
    assert torch.equal(network(x), plain)
    save_networks(tmp_path, config, CLASSES, whole.networks(), {})
    clips = toy_side(config, 12, seed=9).clips
    loaded = load_bundle(tmp_path)
    assert np.isfinite(loaded.predict_clips(lambda _: clips)).all()
    assert len(loaded.networks) == 2
    again = tmp_path / "again"
    save_networks(again, config, CLASSES, loaded.networks, {})
    weights = [(p / "weights.safetensors").read_bytes() for p in (tmp_path, again)]
    assert weights[0] == weights[1]


@BOTH
def test_it_learns(name: str, example: Path) -> None:
    config = toy_config(network=name, epochs=8)
    assert trained(config, toy_folds(config, 1)).history[-1].metrics["accuracy"] > 0.8


# In a space


def test_each_network_of_a_space_is_checked(example: Path, tmp_path: Path) -> None:
    choices = "network: {type: categorical, values: [notebook, temporal, resnet]}, "
    spec = spec_of(tmp_path, f"{choices}dropout: {{type: float, low: 0.0, high: 0.5}}")
    assert [c.network for c in spec.space.examples("network")] == ["notebook", "temporal", "resnet"]
    assert spec.space.examples("network")[0] == spec.space.baseline()
    assert spec.packages == ("lung-networks",)
    backend = InstantBackend(spec.compute)
    options = dataclasses.replace(spec.options, trials=1)
    study = run_small(dataclasses.replace(spec, options=options), backend)
    assert backend.log == ["check", "check", "check", "run"]
    assert study.get_trials()[0].params["network"] == "notebook"


def test_a_network_under_conditions_is_found(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "parameters:\n"
        "  crop: {type: categorical, values: [start, random], with: {pad: [silence, repeat]}}\n"
        "  network: {type: categorical, values: [resnet, notebook], when: {crop: start}}\n"
        "  depth: {type: int, low: 3, high: 5, when: {network: resnet}}\n"
    )
    examples = load_space(str(path)).examples("network")
    assert [(c.network, c.crop, c.pad) for c in examples] == [
        ("notebook", "random", "repeat"),
        ("resnet", "start", "silence"),
    ]


def test_an_unknown_network_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    lr = "lr: {type: float, low: 0.001, high: 0.01}"
    with pytest.raises(UserError) as caught:
        spec_of(tmp_path, lr, ", network: transformer")
    line = str(caught.value)
    assert line.endswith("network: unknown network 'transformer': known: notebook, resnet")
    with pytest.raises(UserError, match="unknown network 'resnt': did you mean 'resnet'"):
        spec_of(tmp_path, "network: {type: categorical, values: [notebook, resnt]}")
    assert not (tmp_path / "results").exists()


def test_a_node_needs_the_package(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    required = NodeRequirements.of_driver(None, ("lung-networks",))
    assert required.violation() is None
    monkeypatch.syspath_prepend("/")  # the node's own path, without the package
    monkeypatch.setattr("sys.path", [p for p in sys.path if p != str(example)])
    assert "has joined with lung-networks missing (here 1.0)" in str(required.violation())


# Packages that cannot be used

MODULE = "from torch import nn\nclass N(nn.Module):\n"
BROKEN = {
    "cannot be imported from oddities:make (ModuleNotFoundError: No module named 'no_such": (
        "import no_such_library"
    ),
    "cannot be imported from oddities:make (AttributeError": "",
    "is oddities:make, which is no function": "make = 3",
    "returns dict, which is no torch.nn.Module": "make = lambda classes, config: {}",
    "fails (ZeroDivisionError: two lines)": (
        "def make(classes, config):\n    raise ZeroDivisionError('two\\nlines')"
    ),
    "fails (TypeError: make() takes": "def make(classes): ...",
    "returns float32 [2, 4] for 2 clips of 3 classes, not float [2, 3]": (
        "from torch import nn\n"
        "def make(classes, config):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, classes + 1))"
    ),
    "returns int64 [2, 3]": (
        f"{MODULE}    def __init__(self): super().__init__(); self.l = nn.Linear(256, 3)\n"
        "    def forward(self, x): return self.l(x.flatten(1)).long()\n"
        "def make(classes, config): return N()"
    ),
    "returns tuple for a batch": (
        f"{MODULE}    def __init__(self): super().__init__(); self.l = nn.Linear(256, 3)\n"
        "    def forward(self, x): return self.l(x.flatten(1)), None\n"
        "def make(classes, config): return N()"
    ),
    "has no parameters to train": (
        "from torch import nn\ndef make(classes, config): return nn.Flatten()"
    ),
    "has lazy modules": "from torch import nn\ndef make(classes, config): return nn.LazyLinear(3)",
    "has a state that cannot be saved (RuntimeError": (
        f"{MODULE}    def __init__(self):\n"
        "        super().__init__(); self.a = self.b = nn.Parameter(nn.Linear(3, 3).weight)\n"
        "def make(classes, config): return N()"
    ),
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_package_that_cannot_be_used(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, tmp_path, BROKEN[said])
    state = torch.get_rng_state()
    with pytest.raises(UserError) as caught:
        check_network(toy_config(network="odd"), 3)
    line = str(caught.value)
    assert line.startswith("network 'odd' of oddities 1.0 ")
    assert said in line
    assert "\n" not in line
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_refused_before_any_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, tmp_path, "make = lambda classes, config: None")
    choices = "network: {type: categorical, values: [notebook, odd]}"
    with pytest.raises(UserError, match=r"network 'odd' of oddities 1\.0 returns NoneType"):
        spec_of(tmp_path, choices)
    assert not (tmp_path / "results").exists()


def test_one_name_of_two_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("oddities", "more-oddities"):
        offer(monkeypatch, tmp_path, "", package=package)
    line = "network 'odd' is offered by more-oddities and oddities: uninstall all but one"
    with pytest.raises(UserError, match=line):
        network_origin("odd")


def test_built_in_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, tmp_path, "", name="notebook")
    assert network_origin("notebook").distribution == "resp-tune"
    assert type(build_network(TrialConfig(), 2)) is SoundNet


# Shipped with the winner


def test_a_search_ships_its_network(
    example: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lr = "lr: {type: float, low: 0.001, high: 0.01}"
    spec = spec_of(tmp_path, lr, ", network: temporal", "--trials", "2")
    with few_trees():
        assert json.loads(search_here(spec).read_bytes())["mlflow"]["version"] == 1
    winner, origin = spec.location.folder / "winner", network_origin("temporal")
    written = json.loads((winner / "config.json").read_text())["network"]
    assert written == {"name": "temporal", "distribution": "lung-networks", "version": "1.0"}
    assert origin.as_dict() == written
    uri = spec.location.tracking_uri
    fetched = fetch_bundle("models:/resp_tune@champion", uri, tmp_path / "fetched")
    assert type(load_bundle(fetched).networks[0]).__name__ == "TemporalNet"
    (requirements,) = spec.location.storage.rglob("requirements.txt")
    assert "lung-networks==1.0" in requirements.read_text().split()
    other = tmp_path / "other"
    shutil.copytree(winner, other)
    content = json.loads((other / "config.json").read_text())
    content["network"]["version"] = "0.9"
    (other / "config.json").write_text(json.dumps(content))
    load_bundle(other)
    assert any("was saved with network 'temporal' of lung-networks 0.9" in line for line in said)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p != str(example)])
    for folder, version in ((winner, "1.0"), (other, "0.9")):
        with pytest.raises(UserError) as caught:
            load_bundle(folder)
        assert str(caught.value) == (
            f"'{folder}' needs the network 'temporal', which is not installed: install the package "
            f"lung-networks (it was saved with version {version}), if you trust it"
        )


@pytest.mark.parametrize("saved", [3, {"name": "resnet"}, {"name": 1}])
def test_a_bundle_with_a_damaged_origin(saved: object, tmp_path: Path) -> None:
    config = toy_config()
    save_networks(tmp_path, config, CLASSES, [build_network(config, 3)], {"network": saved})
    with pytest.raises(UserError, match="is not a valid bundle"):
        load_bundle(tmp_path)


@pytest.mark.slow
def test_workers_of_ray_find_it(site: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        f"fixed: {SMALL}, network: temporal}}\n"
        "parameters: {lr: {type: float, low: 0.001, high: 0.01}}\n"
    )
    small_spec(tmp_path)  # makes the recordings
    env = {"PYTHONPATH": f"{Path(__file__).parents[1]}:{site}"}
    flags = ("--space", str(space), "--data", str(tmp_path / "data"), "--trials", "2", "--epochs",
             "2", "--gpus", "0", "--name", "shipped")  # fmt: skip
    outcome = search(tmp_path / "results", *flags, env=env)
    assert outcome.code == 0, outcome.err
    assert summary(tmp_path / "results", "shipped")["trials"]["finished"] >= 1
    winner = tmp_path / "results/shipped/winner"
    recording = next((tmp_path / "data").rglob("*.wav"))
    found = command("predict", str(recording), "--winner", str(winner), "--json", env=env)
    assert json.loads(found.out)[0]["class"] in ("COPD", "Healthy")
    code = (
        f"import mlflow, numpy as np; mlflow.set_tracking_uri('sqlite:///{tmp_path}/results/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/resp_tune@champion')\n"
        "print(model.predict(np.zeros((2, 4000), np.float32)).shape)"
    )
    served = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert served.stdout == "(2, 2)\n", served.stderr
    missing = command("predict", str(recording), "--winner", str(winner))
    assert (missing.code, len(missing.err.splitlines())) == (2, 1)
    assert "install the package lung-networks" in missing.err
