"""Cluster files: Ray's own schema, a made-up AWS from the first request to the last node's end, shellcheck.

The RayJob is held to the fields of KubeRay's Go types (rayjob_types.go, raycluster_types.go), written down here: there
is no Kubernetes to ask.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import jsonschema
import pytest
import yaml

from lead_ray import machine

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
FILES = ("gpu.yaml", "gpu-gcp.yaml", "local.yaml")
KNOWN_IMAGE = "amzn2-ami-hvm-2.0.*"  # one of those that moto has
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's and moto's own

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")


def read(name: str) -> dict:
    return yaml.safe_load((CLUSTER / name).read_text())


def heading(name: str) -> str:
    """The comment that a file opens with, its lines as one."""
    lines = (CLUSTER / name).read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


@pytest.mark.parametrize("name", FILES)
def test_rays_own_schema(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(name)
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config | {"workers": 3}))


@pytest.mark.parametrize("name", [*FILES, "slurm.sh", "kuberay/rayjob.yaml"])
def test_each_opens_with_its_use_its_cost_and_its_end(name):
    said = heading(name)
    assert "lead_ray.pretrain" in said or "lead_ray.pretrain" in (CLUSTER / name).read_text()
    assert "osts" in said and "at most" in said
    assert any(end in said for end in ("ray down", "scancel", "kubectl delete"))


@pytest.mark.parametrize(("name", "machine"), [("gpu.yaml", "InstanceType"), ("gpu-gcp.yaml", "machineType")])
def test_the_cost_is_that_of_the_dearest_nodes_that_may_run(name, machine):
    config = read(name)
    prices = config["metadata"]["dollars_an_hour"]
    nodes = config["available_node_types"]
    each = prices["disk"] + prices["address"]
    head = prices[nodes[config["head_node_type"]]["node_config"][machine]] + each
    workers = [prices[node["node_config"][machine]] for kind, node in nodes.items() if kind != config["head_node_type"]]
    most = head + config["max_workers"] * (max(workers) + each)
    assert f"at most {most:.2f} USD an hour" in heading(name) and f"costing {head:.2f} until" in heading(name)
    assert config["idle_timeout_minutes"] <= 5
    assert {node["priority"] for kind, node in nodes.items() if kind == "spot"} == {10}


@pytest.mark.parametrize("name", FILES)
def test_nodes_run_the_pinned_packages_and_show_the_dashboard_to_nobody(name):
    config = read(name)
    text = (CLUSTER / name).read_text()
    assert all("constraints.txt" in command for command in config["setup_commands"])
    assert all((ROOT / local).exists() for local in config["file_mounts"].values())
    (start,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start and "0.0.0.0/0" not in text
    (ray,) = [pin for pin in (CLUSTER / "constraints.txt").read_text().splitlines() if pin.startswith("ray==")]
    images = set(re.findall(r"rayproject/ray:([\d.]+)-py311", text + (CLUSTER / "kuberay/Dockerfile").read_text()))
    assert images == {ray.removeprefix("ray==")}
    assert read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] in images


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    """A made-up AWS account, and a home folder for the keys that Ray writes; the home."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    variables = {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "HOME": str(home)}
    variables |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), "made-up")
    with machine.variables(variables), moto.mock_aws():
        boto3.client("s3", "us-east-1").create_bucket(Bucket="faces")
        yield home


@pytest.fixture(scope="module")
def once():
    """cluster/aws_once.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("aws_once", CLUSTER / "aws_once.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def filled(aws, once):
    """gpu.yaml as it is after aws_once.py."""
    file = Path(shutil.copy(CLUSTER / "gpu.yaml", aws))
    once.prepare("faces", "us-west-2", "203.0.113.7", file, KNOWN_IMAGE)
    return file


def open_ports(group: str) -> list[tuple]:
    (found,) = boto3.client("ec2", "us-west-2").describe_security_groups(GroupIds=[group])["SecurityGroups"]
    return sorted(
        (rule["IpProtocol"], rule.get("FromPort"), [span["CidrIp"] for span in rule["IpRanges"]])
        for rule in found["IpPermissions"]
    )


@pytest.mark.slow
def test_only_ssh_is_open_and_only_to_the_caller(filled, once):
    config = yaml.safe_load(filled.read_text())
    (group,) = config["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
    assert open_ports(group) == [("-1", None, []), ("tcp", 22, ["203.0.113.7/32"])]
    once.prepare("faces", "us-west-2", "198.51.100.9", filled, KNOWN_IMAGE)  # on from another place
    assert yaml.safe_load(filled.read_text()) == config
    assert open_ports(group) == [("-1", None, []), ("tcp", 22, ["198.51.100.9/32"])]


@pytest.mark.slow
def test_roles_reach_the_bucket_and_nothing_else(filled):
    iam = boto3.client("iam", "us-west-2")
    policy = iam.get_role_policy(RoleName="lead-ray-worker", PolicyName="lead-ray")["PolicyDocument"]
    assert {statement["Resource"] for statement in policy["Statement"]} == {
        "arn:aws:s3:::faces",
        "arn:aws:s3:::faces/*",
    }
    head = iam.get_role_policy(RoleName="lead-ray-head", PolicyName="lead-ray")["PolicyDocument"]["Statement"]
    (given,) = [statement["Resource"] for statement in head if statement["Action"] == "iam:PassRole"]
    assert given.endswith(":role/lead-ray-worker")


@pytest.mark.slow
def test_from_the_file_to_nodes_and_to_their_end(filled):
    """Ray's own way of `ray up`, up to where it would reach the nodes by SSH."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    config = prepare_config(yaml.safe_load(filled.read_text()))
    validate_config(config)
    config = _bootstrap_config(config, no_config_cache=True)
    types = config["available_node_types"]
    assert types["spot"]["resources"] == types["on-demand"]["resources"] == types["spot"]["resources"] | {"GPU": 1}
    assert "GPU" not in types["head"]["resources"]
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    ec2 = boto3.client("ec2", "us-west-2")
    for kind in ("spot", "on-demand"):
        tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: kind}
        provider.create_node(types[kind]["node_config"], tags, 1)
        nodes = provider.non_terminated_nodes({TAG_RAY_USER_NODE_TYPE: kind})
        (seen,) = ec2.describe_instances(InstanceIds=nodes)["Reservations"]
        (node,) = seen["Instances"]
        assert node["InstanceType"] == "g5.xlarge" and node.get("InstanceLifecycle", "on-demand") == kind
        assert node["IamInstanceProfile"]["Arn"].endswith("/lead-ray-worker")
        provider.terminate_nodes(nodes)
        assert provider.non_terminated_nodes({TAG_RAY_USER_NODE_TYPE: kind}) == []


def fields(required: str, optional: str = "", **nested) -> dict:
    """A JSON schema of an object that has these fields and no others."""
    names = {name: {} for name in (*required.split(), *optional.split())}
    return {
        "type": "object",
        "required": required.split(),
        "properties": names | nested,
        "additionalProperties": False,
    }


TEMPLATE = fields(
    "spec",
    "metadata",
    spec=fields(
        "containers",
        "volumes tolerations nodeSelector serviceAccountName initContainers",
        containers={
            "type": "array",
            "minItems": 1,
            "items": fields("name image resources", "env envFrom volumeMounts command args ports lifecycle"),
        },
    ),
)
PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
RAY_JOB = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    spec=fields(
        "entrypoint rayClusterSpec",
        "runtimeEnvYAML metadata activeDeadlineSeconds submitterPodTemplate suspend",
        entrypoint={"type": "string", "minLength": 1},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        backoffLimit=COUNT,
        ttlSecondsAfterFinished=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        rayClusterSpec=fields(
            "headGroupSpec",
            rayVersion={"type": "string"},
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=fields("", "resources upscalingMode image", idleTimeoutSeconds=COUNT),
            headGroupSpec=fields(
                "rayStartParams template", "serviceType headService", rayStartParams=PARAMETERS, template=TEMPLATE
            ),
            workerGroupSpecs={
                "type": "array",
                "items": fields(
                    "groupName minReplicas maxReplicas rayStartParams template",
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=PARAMETERS,
                    template=TEMPLATE,
                ),
            },
        ),
    ),
)


def test_the_ray_job_has_kuberays_fields():
    job = read("kuberay/rayjob.yaml")
    jsonschema.validate(job, RAY_JOB)
    with pytest.raises(jsonschema.ValidationError, match="ttl"):
        jsonschema.validate(job | {"spec": job["spec"] | {"ttlSeconds": 5}}, RAY_JOB)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == 0 and job["spec"]["shutdownAfterJobFinishes"]


def test_commands_that_the_files_submit_are_understood():
    """Every `python -m lead_ray.pretrain ...` of these files, up to the data that it names."""
    from lead_ray.pretrain import main

    for name in (*FILES, "slurm.sh", "kuberay/rayjob.yaml"):
        (words,) = set(
            re.findall(r"python -m lead_ray\.pretrain ((?:--[a-z]+ [^\s`]+ ?)+)", (CLUSTER / name).read_text())
        )
        arguments = re.sub(r"(s3|gs)://BUCKET|/shared", "/nowhere", words).split()
        with pytest.raises(SystemExit, match=r"'/nowhere/faces' does not exist"):
            main(arguments)


STUBS = {
    "scontrol": "echo node0; echo node1",
    "srun": 'case "$*" in *hostname*) echo 127.0.0.1;; *) echo "$$" >> "$TRACES"; exec sleep 600;; esac',
    "ray": 'for _ in $(seq 3000); do [ "$(cat "$TRACES" 2>/dev/null | wc -l)" -eq 2 ] && break; sleep 0.01; done',
    "activate": "true",
}
"""What slurm.sh finds in place of Slurm, Ray (whose head answers once both nodes are there) and an environment."""

RUN = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("running", flush=True)
signal.pause()
"""


@pytest.mark.parametrize(("words", "code"), [([sys.executable, "-c", RUN], 75), (["false"], 1), (["true"], 0)])
def test_slurms_signal_reaches_the_run_whose_exit_code_is_the_jobs(tmp_path, words, code):
    """And what the script started on the nodes goes with it."""
    for name, text in STUBS.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    variables = {"LEAD_RAY_VENV": str(tmp_path), "TRACES": str(tmp_path / "traces"), "SLURM_JOB_ID": "7"}
    environment = os.environ | variables | {"SLURM_JOB_NODELIST": "node[0-1]"}
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}"
    script = [str(CLUSTER / "slurm.sh"), *words]
    with subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, text=True) as job:
        if code == 75:
            assert job.stdout.readline() == "running\n"
            job.send_signal(signal.SIGTERM)
        assert job.wait(60) == code
    started = [int(line) for line in (tmp_path / "traces").read_text().split()]
    assert len(started) == 2
    end = time.monotonic() + 30
    while any(Path(f"/proc/{number}").exists() for number in started):
        assert time.monotonic() < end, "left behind"
        time.sleep(0.05)


@pytest.mark.parametrize("script", ["cluster/slurm.sh", ".ci/run"])
def test_shellcheck(script):
    shellcheck = Path(sys.executable).with_name("shellcheck")  # tests may run without the environment's bin on PATH
    run = subprocess.run([shellcheck, str(ROOT / script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
