"""The Kubernetes manifests against Kubernetes' own schemas, and what can be run of them.

KubeRay's definition of a RayCluster comes in no package: its pod templates are held against Kubernetes' schema, the
fields around them against a list made from KubeRay's reference, and the whole is read by Ray's autoscaler.
"""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

import envfabric.client.plugin
from recipes.written import documents
from support.fabric import Fabric

NEWEST = str(kubernetes_validate.latest_version())
OLDEST = "1.25.0"
OF_CLUSTER = {
    "rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling", "autoscalerOptions", "suspend",
    "headServiceAnnotations", "gcsFaultToleranceOptions", "managedBy", "authOptions",
}  # fmt: skip
OF_HEAD = {"rayStartParams", "template", "serviceType", "headService", "enableIngress"}
OF_WORKERS = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts", "suspend",
    "idleTimeoutSeconds", "scaleStrategy",
}  # fmt: skip


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The RayCluster."""
    (found,) = documents("raycluster.yaml")
    return found


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster["spec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def check_template(template: dict[str, Any], version: str) -> None:
    """Kubernetes' check of what a pod is made from. Raises `kubernetes_validate.ValidationError`."""
    around = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "it"}, "template": template}
    kubernetes_validate.validate(around, version, strict=True)


def refuse_bad_mounts(pod: dict[str, Any], leases: bool) -> None:
    """ROOT is mounted read-only where ENVFABRIC_ROOT says, from a volume of the pod, and its leases to be written."""
    (container,) = pod["containers"]
    env = {one["name"]: one["value"] for one in container["env"]}
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert {one["name"] for one in mounts.values()} == volumes.keys()
    nas = mounts[env["ENVFABRIC_ROOT"]]
    assert nas["readOnly"]
    assert "persistentVolumeClaim" in volumes[nas["name"]]
    if leases:
        assert not volumes[nas["name"]]["persistentVolumeClaim"].get("readOnly")
        written = mounts[f"{env['ENVFABRIC_ROOT']}/leases"]
        assert written == {"name": nas["name"], "mountPath": written["mountPath"], "subPath": "leases"}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_job_is_one_for_kubernetes(version: str) -> None:
    """Job and ConfigMap keep to the schemas of the oldest and the newest Kubernetes that are known here, in which no
    field that there isn't is passed over."""
    job, code = documents("kubernetes-job.yaml")
    for one in (job, code):
        kubernetes_validate.validate(one, version, strict=True)
    bad = copy.deepcopy(job)
    bad["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, version, strict=True)


def test_command_of_the_job_runs_in_the_environment(
    recipe_fabric: Fabric, variables: dict[str, str], tmp_path: Path
) -> None:
    """The container's command, with the ConfigMap's file, runs in what is served; ROOT is mounted read-only."""
    job, code = documents("kubernetes-job.yaml")
    pod = job["spec"]["template"]["spec"]
    refuse_bad_mounts(pod, leases=False)
    (container,) = pod["containers"]
    (mounted,) = [one for one in pod["volumes"] if one.get("configMap") == {"name": code["metadata"]["name"]}]
    (place,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == mounted["name"]]
    for name, text in code["data"].items():
        (tmp_path / name).write_text(text)
    command = [word.replace(f"{place}/", f"{tmp_path}/") for word in container["command"]]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f" in {Path(recipe_fabric.index()['python']['etl/extract']).parents[1]}\n")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_pods_of_the_cluster_are_some_for_kubernetes(cluster: dict[str, Any], version: str) -> None:
    """Each pod template keeps to Kubernetes' schema, in which no field that there isn't is passed over."""
    for group in groups(cluster):
        check_template(group["template"], version)
    group["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        check_template(group["template"], version)


def test_cluster_has_fields_that_kuberay_knows(cluster: dict[str, Any]) -> None:
    """The fields around the pods are KubeRay's, those that it asks for are there, and `ray start` knows the flags."""
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["spec"].keys() <= OF_CLUSTER
    assert cluster["spec"]["headGroupSpec"].keys() <= OF_HEAD
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    for workers in cluster["spec"]["workerGroupSpecs"]:
        assert {"groupName", "minReplicas", "maxReplicas", "template"} <= workers.keys() <= OF_WORKERS
        assert 0 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    told = subprocess.check_output([Path(sys.executable).with_name("ray"), "start", "--help"], text=True)
    flags = set(re.findall(r"--([a-z-]+)", told))
    for group in groups(cluster):
        assert group["rayStartParams"].keys() <= flags
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_autoscaler_reads_the_cluster(cluster: dict[str, Any]) -> None:
    """Ray's own reader of a RayCluster finds head and workers with what they ask for."""
    cluster["metadata"]["namespace"] = "default"
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    found = {
        name: (one["min_workers"], one["max_workers"], one["resources"]["CPU"]) for name, one in types.items()
    }
    assert found == {"headgroup": (0, 0, 2), "workers": (1, 10, 4)}


def test_all_nodes_have_the_plugin_and_the_nas(cluster: dict[str, Any]) -> None:
    """Head and workers turn the plugin on, have one image, Ray's version in its name, and mount ROOT read-only with
    its leases to be written."""
    images = set()
    for group in groups(cluster):
        pod = group["template"]["spec"]
        refuse_bad_mounts(pod, leases=True)
        (container,) = pod["containers"]
        images.add(container["image"])
        env = {one["name"]: one["value"] for one in container["env"]}
        (plugin,) = json.loads(env["RAY_RUNTIME_ENV_PLUGINS"])
        assert plugin["class"] == f"{envfabric.client.plugin.__name__}.EnvfabricPlugin"
    assert len(images) == 1
    assert images.pop().endswith(f":{cluster['spec']['rayVersion']}")
