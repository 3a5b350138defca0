"""What the launcher `jobset` renders, held to the names and types that the APIs of JobSet and Kubernetes have."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slicedice.launching import Launcher, load_launcher
from slicedice.spec import SpecError
from tests.launch.tpu_jobs import BUCKET, job

SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())["schema"]

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""RFC 1035, which is narrower than RFC 1123, and what JobSet's webhook holds names of Jobs and pods to."""

LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")

EVERYTHING = {
    "queue": "tpus",
    "priority_class": "low",
    "service_account": "trainer",
    "spot": True,
    "node_selector": "cloud.google.com/gke-nodepool=big,team=moe",
    "compilation_cache": "gs://bucket/compiled",
    "env_secret": "wandb-key",
}


def launcher(**settings: Any) -> Any:
    return load_launcher("jobset", {"image": "europe-docker.pkg.dev/p/r/slicedice:1", **settings})


def manifest(rendered_job, unit: int = 0, **settings: Any) -> dict[str, Any]:
    """A unit's manifest, read back."""
    return yaml.safe_load(launcher(**settings).render(rendered_job)[f"unit-{unit}.yaml"])


def pod_of(found: dict[str, Any]) -> dict[str, Any]:
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def misfits(value: Any, schema: Any, path: str = "") -> list[str]:
    """Where a manifest does not keep to the schema."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path}: no list"]
        return [found for n, item in enumerate(value) for found in misfits(item, schema[0], f"{path}[{n}]")]
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path}: no object"]
        fields = {name.rstrip("!"): kind for name, kind in schema.items()}
        any_name = fields.pop("*", None)
        missing = [f"{path}.{name[:-1]}: missing" for name in schema if name.endswith("!") and name[:-1] not in value]
        unknown = [f"{path}.{name}: unknown" for name in value if name not in fields and any_name is None]
        known = [(name, item) for name, item in value.items() if f"{path}.{name}: unknown" not in unknown]
        return (
            missing
            + unknown
            + [found for name, item in known for found in misfits(item, fields.get(name, any_name), f"{path}.{name}")]
        )
    kinds = {"string": str, "integer": int, "boolean": bool, "quantity": (int, str), "object": dict}
    if schema in kinds:
        good = isinstance(value, kinds[schema]) and (schema == "boolean" or not isinstance(value, bool))
    else:
        good = value in schema.split("|")
    return [] if good else [f"{path}: {value!r} is no {schema}"]


def model_misfits(value: Any, kind: str, path: str) -> list[str]:
    """The same by the models of Kubernetes' official client, which were made from its OpenAPI."""
    from kubernetes import client  # pyright: ignore[reportMissingImports]

    if inner := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{path}: no list"]
        return [found for n, item in enumerate(value) for found in model_misfits(item, inner[1], f"{path}[{n}]")]
    if inner := re.fullmatch(r"[Dd]ict[\[(]str, (.+)[\])]", kind):
        return [found for name in value for found in model_misfits(value[name], inner[1], f"{path}.{name}")]
    if kind in ("str", "int", "bool"):  # quantities are texts
        return [] if type(value).__name__ == kind else [f"{path}: {value!r} is no {kind}"]
    model = getattr(client, kind)
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    return [
        found
        for name, item in value.items()
        for found in (
            model_misfits(item, model.openapi_types[names[name]], f"{path}.{name}")
            if name in names
            else [f"{path}.{name}: unknown"]
        )
    ]


# Chips a host, hosts a slice, slices, and the labels that GKE's documentation gives each kind.
PLACES = [
    ("v4:2x2x1", {}, 4, 1, 1, "tpu-v4-podslice", "2x2x1"),
    ("v4:2x2x4", {}, 4, 4, 1, "tpu-v4-podslice", "2x2x4"),
    ("v5e:2x2", {}, 4, 1, 1, "tpu-v5-lite-podslice", "2x2"),
    ("v5e:2x4", {}, 4, 2, 1, "tpu-v5-lite-podslice", "2x4"),
    ("v5e:2x4", {"chips_per_host": 8}, 8, 1, 1, "tpu-v5-lite-podslice", "2x4"),
    ("v5e:4x4 slices=2", {}, 4, 4, 2, "tpu-v5-lite-podslice", "4x4"),
    ("v5p:4x4x4", {}, 4, 16, 1, "tpu-v5p-slice", "4x4x4"),
    ("v5p:2x2x1 slices=4", {}, 4, 1, 4, "tpu-v5p-slice", "2x2x1"),
    ("v6e:2x4", {"chips_per_host": 8}, 8, 1, 1, "tpu-v6e-slice", "2x4"),
    ("v6e:16x16 slices=4", {}, 4, 64, 4, "tpu-v6e-slice", "16x16"),
    ("tpu7x:2x4x4", {}, 4, 8, 1, "tpu7x", "2x4x4"),  # 64 devices, two on each chip
]


def test_is_a_launcher():
    assert isinstance(launcher(), Launcher)


@pytest.mark.parametrize("topology", [*sorted({place[0] for place in PLACES}), "h100:8", "h200:1", "a100:4", None])
@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("where", ["bucket", "volume"])
def test_manifests_keep_to_the_published_names_and_types(topology, settings, where):
    volume = {"volume_claim": "filestore", "volume_mount": "/mnt"} if where == "volume" else {}
    cpus = {} if topology else {"cpus": 4}
    found = manifest(job(topology, root="/mnt/runs" if volume else BUCKET), **settings, **volume, **cpus)
    assert misfits(found, SCHEMA) == []
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


@pytest.mark.parametrize("topology", ["v5p:4x4x4", "h100:8"])
def test_pods_and_jobs_keep_to_the_models_of_the_client(topology):
    pytest.importorskip("kubernetes")
    found = manifest(job(topology, root="/runs"), volume_claim="filestore", **EVERYTHING)
    spec = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert model_misfits(spec, "V1JobSpec", "") == []
    assert model_misfits(found["metadata"], "V1ObjectMeta", "") == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda spec: spec.update(nodeSelectors={}), "nodeSelectors: unknown"),
        (lambda spec: spec["containers"][0].update(volumeMount=[]), "volumeMount: unknown"),
        (lambda spec: spec["tolerations"][0].update(operator=True), "operator: True is no string"),
        (lambda spec: spec["containers"][0].pop("name"), "name: missing"),
    ],
)
def test_the_check_itself_finds_what_is_misspelt(change, told):
    found = manifest(job())
    change(pod_of(found))
    assert [misfit for misfit in misfits(found, SCHEMA) if misfit.endswith(told)]


@pytest.mark.parametrize(("topology", "settings", "chips", "hosts", "slices", "accelerator", "shape"), PLACES)
def test_a_job_is_a_slice_and_a_pod_a_host(topology, settings, chips, hosts, slices, accelerator, shape):
    found = manifest(job(topology), **settings)
    (replicated,) = found["spec"]["replicatedJobs"]
    spec, pod = replicated["template"]["spec"], pod_of(found)
    assert replicated["replicas"] == slices
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", hosts, hosts)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": str(chips)}}
    # A slice's pods have to be those of one node pool; a machine alone may share its pool with others.
    exclusive = found["metadata"].get("annotations", {}).get("alpha.jobset.sigs.k8s.io/exclusive-topology")
    assert exclusive == ("cloud.google.com/gke-nodepool" if hosts > 1 else None)
    assert ("--processes" in pod["containers"][0]["command"]) == (hosts * slices > 1)


def test_gpus_are_those_of_one_machine():
    pod = pod_of(manifest(job("h100:8")))
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    own = pod_of(manifest(job("h100:8"), node_selector="nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3"))
    assert own["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}


def test_a_pod_without_an_accelerator_takes_cores_and_memory():
    pod = pod_of(manifest(job(None, bytes=3 * 2**30), cpus=4))
    assert pod["containers"][0]["resources"] == {"requests": {"cpu": "4", "memory": str(4 * 2**30)}}
    assert "nodeSelector" not in pod


@pytest.mark.parametrize(("topology", "platforms"), [("v5e:4x4", "tpu,cpu"), ("h100:8", "cuda,cpu")])
def test_a_pod_whose_accelerator_fails_does_not_train_on_its_cores(topology, platforms):
    (container,) = pod_of(manifest(job(topology)))["containers"]
    assert {"name": "JAX_PLATFORMS", "value": platforms} in container["env"]


def test_preemptions_restart_without_being_counted_and_failures_are():
    found = manifest(job(), max_restarts=5)
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 5
    (rule,) = policy["rules"]  # what no rule matches is RestartJobSet, which counts
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    spec = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    codes, conditions = spec["podFailurePolicy"]["rules"]
    assert codes["action"] == conditions["action"] == "FailJob"
    assert codes["onExitCodes"] == {
        "containerName": pod_of(found)["containers"][0]["name"],
        "operator": "In",
        "values": [75, 143],
    }
    assert conditions["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert pod_of(found)["shareProcessNamespace"] is True  # without it, no process ends with 143
    # A pod failure policy takes pods that are never restarted, and nothing but the policies restarts a pod.
    assert (pod_of(found)["restartPolicy"], spec["backoffLimit"]) == ("Never", 0)
    assert pod_of(found)["terminationGracePeriodSeconds"] >= 300


def test_settings_reach_their_fields():
    found = manifest(job(), **EVERYTHING)
    pod = pod_of(found)
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpus"
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("low", "trainer")
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["nodeSelector"]["cloud.google.com/gke-nodepool"] == "big"
    spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    assert spot in pod["tolerations"]
    assert {"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://bucket/compiled"} in pod["containers"][0]["env"]
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "wandb-key"}}]


def test_settings_left_empty_are_left_out():
    text = launcher().render(job())["unit-0.yaml"]
    for word in (
        "kueue",
        "envFrom",
        "JAX_COMPILATION_CACHE_DIR",
        "priorityClassName",
        "serviceAccountName",
        "gke-spot",
        "volumes",
        "null",
        "''",
        "{}",
        "[]",
    ):
        assert word not in text, word


def test_each_unit_is_a_manifest_and_is_told_its_number():
    work = job(units=3)
    rendered = launcher().render(work)
    assert list(rendered) == ["unit-0.yaml", "unit-1.yaml", "unit-2.yaml"]
    for number, text in enumerate(rendered.values()):
        found = yaml.safe_load(text)
        assert pod_of(found)["containers"][0]["command"][-1] == f"{work.name}/{number}"
        labels = found["metadata"]["labels"]
        assert (labels["slicedice/launch"], labels["slicedice/unit"]) == (work.name, str(number))
        assert (
            labels.items()
            <= (
                found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]["labels"] | labels
            ).items()
        )


@given(st.from_regex(r"[a-z][a-z0-9-]{0,39}", fullmatch=True), st.integers(0, 9999), st.sampled_from(PLACES))
def test_names_are_valid_for_every_launch_and_thousands_of_units(name, unit, place):
    found = launcher(**place[1])._manifest(job(place[0], name=name), unit)
    (replicated,) = found["spec"]["replicatedJobs"]
    slices, hosts = replicated["replicas"], replicated["template"]["spec"]["completions"]
    pod = f"{found['metadata']['name']}-{replicated['name']}-{slices - 1}-{hosts - 1}-xxxxx"
    assert DNS_LABEL.fullmatch(found["metadata"]["name"]), found["metadata"]["name"]
    assert DNS_LABEL.fullmatch(pod), pod
    for value in found["metadata"]["labels"].values():
        assert LABEL_VALUE.fullmatch(value), value


@pytest.mark.parametrize(
    "hazard", ["gs://b/it's; rm -rf $HOME", "gs://b/$(HOME)/$$x", 'gs://b/a "b"\\n#: {c}', "gs://b/ü"]
)
def test_a_store_of_any_name_reaches_the_worker_as_it_is(hazard):
    (container,) = pod_of(manifest(job(root=hazard)))["containers"]
    # As Kubernetes expands it: $$ is a dollar, $(NAME) a variable.
    assert "$(" not in [part for word in container["command"] for part in re.sub(r"\$\$", "", word).split()]
    words = [word.replace("$$", "$") for word in container["command"]]
    assert words == shlex.split(job(root=hazard).command(0, processes=0))
    assert words[words.index("--store") + 1] == hazard


def test_a_volume_is_mounted_where_the_store_is():
    store = pod_of(manifest(job(root="/mnt/nfs/runs"), volume_claim="filestore"))
    assert store["volumes"] == [{"name": "store", "persistentVolumeClaim": {"claimName": "filestore"}}]
    assert store["containers"][0]["volumeMounts"] == [{"name": "store", "mountPath": "/mnt/nfs/runs"}]
    above = pod_of(manifest(job(root="/mnt/nfs/runs"), volume_claim="filestore", volume_mount="/mnt/nfs/"))
    assert above["containers"][0]["volumeMounts"] == [{"name": "store", "mountPath": "/mnt/nfs/"}]


@pytest.mark.parametrize(
    ("work", "settings", "field", "told"),
    [
        ({"root": "/home/me/runs"}, {}, "--store", "gs://BUCKET/FOLDER"),
        (
            {"root": "/home/me/runs"},
            {"volume_claim": "nfs", "volume_mount": "/mnt"},
            "--launcher.volume_mount",
            "/home/me/runs",
        ),
        (
            {"root": "/mnt2/runs"},
            {"volume_claim": "nfs", "volume_mount": "/mnt"},
            "--launcher.volume_mount",
            "/mnt2/runs",
        ),
        ({}, {"volume_claim": "nfs"}, "--launcher.volume_claim", "bucket"),
        ({}, {"volume_mount": "/mnt"}, "--launcher.volume_mount", "volume_claim"),
        ({}, {"image": ""}, "--launcher.image", "launch/Dockerfile"),
        ({}, {"namespace": ""}, "--launcher.namespace", "lower-case"),
        ({}, {"queue": "Big Queue"}, "--launcher.queue", "lower-case"),
        ({}, {"service_account": "a: b"}, "--launcher.service_account", "lower-case"),
        ({}, {"env_secret": "WANDB_API_KEY=1"}, "--launcher.env_secret", "lower-case"),
        ({}, {"node_selector": "pool"}, "--launcher.node_selector", "LABEL=VALUE"),
        ({}, {"max_restarts": -1}, "--launcher.max_restarts", "from 0"),
        ({}, {"compilation_cache": "/tmp/x"}, "--launcher.compilation_cache", "gs://"),
        ({}, {"chips_per_host": 8}, "--launcher.chips_per_host", "2x4"),
        ({"topology": "v5p:2x2x2"}, {"chips_per_host": 8}, "--launcher.chips_per_host", "2x4"),
        ({"topology": None}, {}, "--topology", "v5e:4x4"),
        ({}, {"cpus": 4}, "--launcher.cpus", "v5e:4x4"),
        ({"topology": "h100:8 slices=2"}, {}, "--topology", "one machine"),
        ({"max_concurrent": 1}, {}, "--max_concurrent", "Kueue"),
    ],
)
def test_what_cannot_run_is_refused_by_name(work, settings, field, told):
    with pytest.raises(SpecError, match=re.escape(told)) as refused:
        launcher(**settings).render(job(**work))
    assert refused.value.field == field
