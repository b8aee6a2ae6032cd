"""The two cluster files of `ray up`: read by Ray's own code, up to where it would reach a host."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import moto
import pytest
import yaml
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.local.config import bootstrap_local
from ray.autoscaler._private.util import prepare_config, validate_config
from support.recipes import calls, commands, text

HOSTS, AWS = "ray-cluster.yaml", "ray-cluster-aws.yaml"


def read(content: str) -> dict[str, Any]:
    """As `ray up` reads it: its defaults filled in, held against Ray's schema."""
    config = prepare_config(yaml.safe_load(content))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", [HOSTS, AWS])
def test_ray_takes_the_file(name: str) -> None:
    config = read(text(name))
    for kind in ("head", "worker"):
        stop, start = config[f"{kind}_start_ray_commands"]
        assert "ray stop" in stop
        # Each command has a shell of its own, so the mode must stand in the one that starts Ray.
        assert re.search(r"RAY_AUTH_MODE=token (\w+=\w+ )?ray start", start)
    # The token is where Ray looks for it, and comes from there.
    ((there, here),) = config["file_mounts"].items()
    assert here == "~/.ray/auth_token"
    assert there.endswith("/.ray/auth_token")
    # The dashboard, which takes jobs, is reached over ssh only.
    (head,) = calls("ray start", config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    (worker,) = calls("ray start", config["worker_start_ray_commands"])
    assert worker == ["--address=$RAY_HEAD_IP:6379"]
    assert "--port=6379" in head


def test_every_host_of_the_list_is_used() -> None:
    config = bootstrap_local(read(text(HOSTS)))
    # Ray 2.60's newer autoscaler starts none of them (seen, and ray-project/ray#59905).
    assert "RAY_enable_autoscaler_v2=0 ray start" in config["head_start_ray_commands"][1]
    (node,) = config["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.fixture
def amazon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An Amazon in this process: no request leaves it, and none could, with these credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with moto.mock_aws():
        yield


@pytest.mark.usefixtures("amazon")
@pytest.mark.thorough
def test_aws_launches_what_the_file_asks_for() -> None:
    import boto3

    given = read(text(AWS))
    region = given["provider"]["region"]
    # Else Ray would make a key pair and keep it in ~/.ssh.
    given["auth"]["ssh_private_key"] = "own.pem"
    iam = boto3.client("iam")
    iam.create_instance_profile(InstanceProfileName="resp-tune")
    image = boto3.client("ec2", region).describe_images()["Images"][0]["ImageId"]
    for node in given["available_node_types"].values():
        node["node_config"]["KeyName"] = "own"
        # Amazon looks the name up; this one knows none.
        assert node["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/")
        node["node_config"]["ImageId"] = image

    config = bootstrap_aws(copy.deepcopy(given))

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    types = config["available_node_types"]
    for kind in ("head", "gpu"):
        provider.create_node(types[kind]["node_config"], {"ray-user-node-type": kind}, 1)
    reservations = boto3.client("ec2", region).describe_instances()["Reservations"]
    launched = {
        next(t["Value"] for t in i["Tags"] if t["Key"] == "ray-user-node-type"): i
        for r in reservations
        for i in r["Instances"]
    }
    assert {kind: i["InstanceType"] for kind, i in launched.items()} == {
        "head": "m6i.xlarge",
        "gpu": "g5.xlarge",
    }
    assert launched["gpu"].get("InstanceLifecycle") == "spot"
    assert launched["head"].get("InstanceLifecycle") != "spot"
    for instance in launched.values():
        assert instance["IamInstanceProfile"]["Arn"].endswith("/resp-tune")
        assert instance["SecurityGroups"]
    # The head has no part in trials; a worker has what its type has.
    assert types["head"]["resources"] == {"CPU": 0}
    offered = boto3.client("ec2", region).describe_instance_types(InstanceTypes=["g5.xlarge"])
    (offered,) = offered["InstanceTypes"]
    assert types["gpu"]["resources"]["CPU"] == offered["VCpuInfo"]["DefaultVCpus"]
    assert types["gpu"]["resources"]["GPU"] == offered["GpuInfo"]["Gpus"][0]["Count"]


def test_the_search_asks_for_no_more_gpus_than_may_come() -> None:
    content = text(AWS)
    config = read(content)
    (search,) = calls("python -m resp_tune.search", commands(AWS, content))
    gpu = config["available_node_types"]["gpu"]
    assert int(search[search.index("--gpus") + 1]) <= gpu["max_workers"] * gpu["resources"]["GPU"]
    assert gpu["max_workers"] <= config["max_workers"]
