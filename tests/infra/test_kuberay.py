"""The manifest for KubeRay holds what the profile it is for asks of a cluster."""

import re
from pathlib import Path

import yaml

from ray_jobs.params import find_profile, load_params

REPO = Path(__file__).resolve().parent.parent.parent
MANIFEST = REPO / "infra" / "kuberay.yaml"


def test_the_cluster_has_room_for_the_profiles_workers_and_time_to_save():
    spec, training = yaml.safe_load(MANIFEST.read_text())["spec"], load_params(find_profile("unimedvl-14b")).training
    (group,) = spec["workerGroupSpecs"]
    pod = group["template"]["spec"]
    has = pod["containers"][0]["resources"]["limits"]
    each = {"nvidia.com/gpu": training.gpus_per_worker, "cpu": training.threads_per_worker}
    assert group["minReplicas"] * min(int(has[kind]) // needed for kind, needed in each.items()) >= training.min_workers
    head = spec["headGroupSpec"]["template"]["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert int(environment(head)["RAY_JOB_STOP_WAIT_TIME_S"]) > 120
    assert pod["terminationGracePeriodSeconds"] > int(environment(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) > 120
    for each_pod in (pod, head):
        (container,) = each_pod["containers"]
        assert all(environment(each_pod)[name].startswith("/scratch/") for name in ("UNIMED_STATE_DIR", "UNIMED_SCRATCH_DIR"))
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in each_pod["volumes"]}


def environment(pod: dict) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}


def test_the_cluster_is_of_the_locked_ray():
    locked = re.search(r"^ray==(\S+)", (REPO / "requirements.lock").read_text(), re.MULTILINE).group(1)
    assert yaml.safe_load(MANIFEST.read_text())["spec"]["rayVersion"] == locked
