"""What `kubectl apply -k` sends: valid by Kubernetes' own schemas, and consistent in what no schema knows."""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from sampler_client.config import Timeouts
from tests.deploy.conftest import DEPLOY, ROOT, Tool, given_up_after_s, only
from tests.deploy.test_commands import parsed

VERSION = "1.34"
"""of Kubernetes, whose schemas are asked"""

CUSTOM = yaml.safe_load(Path(__file__).with_name("schemas.yaml").read_text(encoding="utf-8"))
"""schemas of kinds that are not Kubernetes' own, but of operators"""

Manifest = dict[str, Any]


def templates(cluster: Manifest) -> Iterator[Manifest]:
    """Templates of pods, the head's first."""
    yield cluster["spec"]["headGroupSpec"]["template"]
    for group in cluster["spec"]["workerGroupSpecs"]:
        yield group["template"]


def containers(cluster: Manifest) -> Iterator[Manifest]:
    for template in templates(cluster):
        yield from template["spec"]["containers"]


def check(manifest: Manifest) -> None:
    """Raise an error unless Kubernetes would take it; unknown fields are errors, too."""
    if manifest["kind"] in CUSTOM:
        jsonschema.validate(manifest, CUSTOM[manifest["kind"]])
    else:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def as_pod(template: Manifest) -> Manifest:
    metadata = {"name": "pod", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.fixture
def cluster(manifests) -> Manifest:
    return only(manifests, "RayCluster")


@pytest.fixture
def ingestion() -> Manifest:
    """The Job that registers data."""
    return yaml.safe_load((DEPLOY / "kubernetes/ingest.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def gateway(cluster) -> Manifest:
    (found,) = (each for each in containers(cluster) if each["name"] == "gateway")
    return found


def ports(cluster: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for each in containers(cluster) for port in each.get("ports", ())}


def test_manifests_are_what_kubernetes_takes(manifests) -> None:
    for manifest in manifests:
        check(manifest)


def test_the_pods_of_the_ray_cluster_are_what_kubernetes_takes(cluster) -> None:
    for template in templates(cluster):
        check(as_pod(template))


def test_a_mistake_in_a_pod_would_be_found(cluster) -> None:
    template = copy.deepcopy(next(templates(cluster)))
    template["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        check(as_pod(template))


MISTAKES = {
    "misspelt": ("RayCluster", lambda spec: spec.update(headgroupSpec=spec.pop("headGroupSpec"))),
    "no text": ("RayCluster", lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0})),
    "unknown": ("RayCluster", lambda spec: spec["workerGroupSpecs"][0].update(replica=2)),
    "no count": ("RayCluster", lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="2")),
    "no choice": ("RayCluster", lambda spec: spec["authOptions"].update(mode="tokens")),
    "no duration": ("PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(interval=15)),
    "no such field": ("PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(targetport="page")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_what_an_operator_reads_would_be_found(manifests, mistake: str) -> None:
    kind, make = MISTAKES[mistake]
    manifest = copy.deepcopy(only(manifests, kind))
    check(manifest)
    make(manifest["spec"])
    with pytest.raises(jsonschema.ValidationError):
        check(manifest)


def test_manifests_are_those_that_kubectl_makes(overlay: Path, manifests, tool: Tool) -> None:
    made = {each["kind"]: each for each in yaml.safe_load_all(tool("kubectl", "kustomize", overlay))}
    token = made["Secret"]["data"]
    token["auth_token"] = "".join(token["auth_token"].split())  # it folds lines
    assert made == {each["kind"]: each for each in manifests}


def test_everything_is_in_the_namespace(manifests) -> None:
    name = only(manifests, "Namespace")["metadata"]["name"]
    for manifest in manifests:
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == name


def test_all_pods_run_the_same_image_with_the_pinned_ray(cluster) -> None:
    (image,) = {container["image"] for container in containers(cluster)}
    assert image.startswith("REGISTRY/gradient-sampler/service")
    (pinned,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert cluster["spec"]["rayVersion"] == pinned


def test_the_gateway_takes_the_options_it_is_started_with(gateway) -> None:
    program, *command = gateway["args"]
    assert (program, command[0]) == ("sampler-service", "up")
    assert parsed(command)["host"] == "0.0.0.0"


def test_ray_is_the_first_container_of_a_pod(cluster) -> None:
    assert [template["spec"]["containers"][0]["name"] for template in templates(cluster)] == ["ray-head", "ray-worker"]


def test_the_gateway_can_join_ray_beside_it(cluster, gateway) -> None:
    head = next(templates(cluster))["spec"]
    assert head["shareProcessNamespace"] is True
    assert {"name": "ray", "mountPath": "/tmp/ray"} in gateway["volumeMounts"]
    assert {"name": "ray", "mountPath": "/tmp/ray"} in head["containers"][0]["volumeMounts"]


def test_the_gateway_drains_before_ray_ends(cluster) -> None:
    head = next(templates(cluster))["spec"]
    _, wait_s = head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    rays_own_s = 30  # in which a node drains
    assert int(wait_s) + rays_own_s < head["terminationGracePeriodSeconds"]


def test_the_gateway_is_asked_whether_it_serves(cluster, gateway) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert gateway[probe]["grpc"]["port"] == ports(cluster)["grpc"] == 50051


def test_memory_is_requested_as_it_is_limited(cluster) -> None:
    for container in containers(cluster):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert requests["memory"] == limits["memory"]
        assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


def test_nobody_is_root_or_may_become_it(manifests, cluster) -> None:
    assert only(manifests, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for template in templates(cluster):
        context = template["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == 1000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert template["spec"]["automountServiceAccountToken"] is False
    for container in containers(cluster):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_no_worker_goes_because_it_looks_idle(cluster) -> None:
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    assert not cluster["spec"].get("enableInTreeAutoscaling")


def test_ray_and_the_gateway_have_the_token_of_the_one_secret(manifests, cluster, gateway) -> None:
    secret = only(manifests, "Secret")
    assert base64.b64decode(secret["data"]["auth_token"]).decode() == 64 * "a"
    name = secret["metadata"]["name"]
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": name}
    variables = {variable["name"]: variable for variable in gateway["env"]}
    assert variables["RAY_AUTH_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": name, "key": "auth_token"}}
    assert variables["RAY_AUTH_MODE"]["value"] == "token"


def test_no_token_is_checked_in() -> None:
    assert "auth_token=" not in "".join(file.read_text("utf-8") for file in (DEPLOY / "kubernetes").rglob("*.yaml"))


def test_selectors_mean_the_pods_of_this_cluster(manifests, cluster) -> None:
    pods = {"ray.io/cluster": cluster["metadata"]["name"]}  # the operator's label
    assert only(manifests, "Service")["spec"]["selector"] == {**pods, "ray.io/node-type": "head"}
    assert only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() >= pods.items()
    for kind, field in (("NetworkPolicy", "podSelector"), ("PodMonitor", "selector")):
        assert only(manifests, kind)["spec"][field] == {"matchLabels": pods}


def test_ports_have_the_names_of_ports_of_the_pods(manifests, cluster) -> None:
    known = ports(cluster)
    assert (known["grpc"], known["page"]) == (50051, 50052)
    for port in only(manifests, "Service")["spec"]["ports"]:
        assert known[port["targetPort"]] == port["port"]
    for endpoint in only(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]:
        assert endpoint["port"] in known
    for rule in only(manifests, "NetworkPolicy")["spec"]["ingress"]:
        assert all(port["port"] in known for port in rule.get("ports", ()))


def test_only_ray_itself_gets_in_everywhere_and_nothing_gets_out(manifests) -> None:
    spec = only(manifests, "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    for rule in spec["ingress"]:
        assert rule.get("ports") or rule["from"] == [{"podSelector": spec["podSelector"]}]
    for rule in spec["egress"]:
        assert rule["to"] == [{"podSelector": spec["podSelector"]}] or {port["port"] for port in rule["ports"]} == {53}


def test_volumes_are_there_for_those_who_mount_them(manifests, cluster) -> None:
    claims = {manifest["metadata"]["name"] for manifest in manifests if manifest["kind"] == "PersistentVolumeClaim"}
    claimed: set[str] = set()
    for template in templates(cluster):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        claimed |= {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= {*volumes}
    assert claimed == claims


def test_the_ingestion_is_what_kubernetes_takes_in_a_pod_like_the_others(ingestion, manifests, cluster) -> None:
    check(ingestion)
    template = ingestion["spec"]["template"]
    check(as_pod(template))
    like = next(templates(cluster))
    (container,) = template["spec"]["containers"]
    assert ingestion["metadata"]["namespace"] == only(manifests, "Namespace")["metadata"]["name"]
    assert template["spec"]["securityContext"] == like["spec"]["securityContext"]
    assert container["securityContext"] == like["spec"]["containers"][0]["securityContext"]
    policy = only(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert not policy.items() <= template["metadata"]["labels"].items(), "it may ask object stores"


def test_data_sets_are_on_the_claim_where_the_service_reads_and_the_ingestion_writes(
    manifests, cluster, gateway, ingestion
) -> None:
    if not any(manifest["kind"] == "PersistentVolumeClaim" for manifest in manifests):
        assert "--data-dir" not in str(gateway["args"])
        return
    name, at = only(manifests, "PersistentVolumeClaim")["metadata"]["name"], "/data"
    data_dir = parsed(gateway["args"][1:])["data_dir"]
    assert Path(at) in Path(data_dir).parents
    for template in templates(cluster):  # Ray's containers, in which the gateway's actor and scorers run
        assert {"name": "data", "mountPath": at, "readOnly": True} in template["spec"]["containers"][0]["volumeMounts"]
    pod = ingestion["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert parsed(container["args"][1:])["data_dir"] == data_dir
    assert pod["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]
    assert container["volumeMounts"] == [{"name": "data", "mountPath": at}]


def test_the_head_sees_no_gpus_that_others_were_given(cluster) -> None:
    if "nvidia.com/gpu" not in str(cluster):
        return
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    for container in next(templates(cluster))["spec"]["containers"]:
        assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]


def test_a_node_is_given_up_before_trainers_give_up(cluster) -> None:
    variables = {each["name"]: each.get("value") for each in next(templates(cluster))["spec"]["containers"][0]["env"]}
    assert given_up_after_s(variables) < Timeouts().reconnect_s / 2


def test_shards_on_gpus_fit_on_those_of_the_workers(cluster, gateway) -> None:
    options = dict(option.split("=") for option in gateway["args"][2:])
    (group,) = cluster["spec"]["workerGroupSpecs"]
    gpus = group["replicas"] * int(
        group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0)
    )
    assert int(options["--shards"]) * float(options.get("--gpus-per-shard", 0)) <= gpus
