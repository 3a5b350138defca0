"""Hands work units to Kubernetes: one JobSet each, on TPU slices or GPUs, queued by Kueue where it is told to.

A JobSet has a Job for each slice, and a Job a pod for each of the slice's hosts. What was preempted starts
again, all of it together and however often; what failed does so `max_restarts` times. docs/launching/jobset.md
tells more.
"""

import os
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from slicedice.cost.topology import Topology
from slicedice.faults import AGAIN
from slicedice.launching import Job, LaunchError, LeftoverError, Phase
from slicedice.launching.kubernetes_api import NotDoneError, ask, connect
from slicedice.spec.errors import require
from slicedice.store import Launch

GROUP, VERSION, PLURAL = "jobset.x-k8s.io", "v1alpha2", "jobsets"

LAUNCH, UNIT = "slicedice/launch", "slicedice/unit"
"""Labels of JobSets and pods."""

SLICE = "s"
"""Of a JobSet's only replicated job. Short, since pods are called JOBSET-s-SLICE-HOST-xxxxx, in 63 characters."""

CONTAINER = "worker"

TERMINATED = 128 + signal.SIGTERM
"""What a process ends with that was told to stop before it could listen."""

GRACE_SECONDS = 600
"""For a worker to save a checkpoint. A spot machine gives less, whatever is asked for."""

KEPT_SECONDS = 7 * 24 * 3600
"""How long a JobSet that has ended is there to be asked about."""

TPUS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
"""What GKE calls TPUs, in the label cloud.google.com/gke-tpu-accelerator."""

GPUS = {"a100": "nvidia-a100-80gb", "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}
"""What GKE calls GPUs, in the label cloud.google.com/gke-accelerator."""

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""Of what is in Kubernetes already: queues, classes, accounts, claims."""

LABEL = re.compile(
    r"(?=[^=]{1,317}=)(?:[a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?=[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?"
)


@dataclass(frozen=True)
class JobSet:
    """Settings. What is left empty is left out of manifests.

    image: has slicedice and Python on its path; launch/Dockerfile makes one.
    namespace: where JobSets are made.
    context: of the kubeconfig; empty: the current one.
    queue: the local queue of Kueue that admits them.
    priority_class: of pods; Kueue goes by it too.
    service_account: that pods run as, which may use the store's bucket.
    spot: on GKE's spot machines.
    max_restarts: of a unit, after failures. Preemptions do not count.
    chips_per_host: of a TPU machine: 8 where a slice 2x4 of v5e or v6e is one machine of 8.
    node_selector: labels that nodes have to have, LABEL=VALUE,LABEL=VALUE: a node pool, a reservation. For GPUs they
      stand in place of GKE's label of their kind.
    compilation_cache: gs:// folder for compiled programs, which pods then need not compile again. What is in it is
      executed: not in the store, and nobody else's.
    volume_claim: of a volume that many pods may write, where the store is a path.
    volume_mount: where pods have it; empty: at the store's path.
    cpus: of a pod without an accelerator, where there is no topology; 0: none starts.
    env_secret: a secret in the namespace, of which each key is a variable of the workers' environment, such as
      WANDB_API_KEY.
    """

    image: str = ""
    namespace: str = "default"
    context: str = ""
    queue: str = ""
    priority_class: str = ""
    service_account: str = ""
    spot: bool = False
    max_restarts: int = 3
    chips_per_host: int = 4
    node_selector: str = ""
    compilation_cache: str = ""
    volume_claim: str = ""
    volume_mount: str = ""
    cpus: int = 0
    env_secret: str = ""

    def render(self, job: Job) -> Mapping[str, str]:
        """A manifest for each unit, `unit-N.yaml`.

        Raises:
          SpecError: a setting cannot be used, pods could not reach the store, or there is nothing to train on.
        """
        self._check(job)
        return {
            f"unit-{number}.yaml": yaml.safe_dump(self._manifest(job, number), sort_keys=False, width=120)
            for number in range(len(job.units))
        }

    def submit(self, job: Job, rendered: Mapping[str, str]) -> Sequence[str]:
        """Makes the JobSets; all of them, or if one is refused none.

        Returns:
          NAMESPACE/NAME of each.

        Raises:
          LaunchError: the cluster cannot be reached, or refused.
          LeftoverError: and what it had made, or may have, could not be deleted.
        """
        client, cluster = connect(self.context)
        left = f"kubectl delete jobsets --namespace {self.namespace} -l {LAUNCH}={_label(job.name)}"
        taken = (
            "It is of another store, or of one that was here before. The same command again takes another name; "
            f"this deletes what has this one: {left}"
        )
        create, made = client.CustomObjectsApi(cluster).create_namespaced_custom_object, []
        try:
            for number in range(len(job.units)):
                manifest = yaml.safe_load(rendered[f"unit-{number}.yaml"])
                namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
                made.append(f"{namespace}/{name}")  # before it is, since the answer that it is may be lost
                try:
                    ask(create, GROUP, VERSION, namespace, PLURAL, manifest, if_taken=taken)
                except NotDoneError:
                    made.pop()  # what may have this name is another's
                    raise
        except BaseException as error:
            try:
                self._delete(made)
            except LaunchError:
                raise LeftoverError(f"{error} What was made may still be there; this deletes it: {left}") from error
            raise
        return made

    def poll(self, launch: Launch) -> Sequence[Phase]:
        """Lists the launch's JobSets, once."""
        found = self._labelled(launch)
        return [_phase(found[handle]) if handle in found else Phase.ENDED for handle in launch.handles]

    def cancel(self, launch: Launch, units: Sequence[int]) -> None:
        """Deletes JobSets with the launch's label. Their pods have `GRACE_SECONDS` to save a checkpoint."""
        found = self._labelled(launch)
        self._delete([launch.handles[unit] for unit in units if launch.handles[unit] in found])

    def _labelled(self, launch: Launch) -> dict[str, Any]:
        """JobSets that the cluster itself says to be of the launch, by handle."""
        client, cluster = connect(self.context)
        jobsets, found = client.CustomObjectsApi(cluster).list_namespaced_custom_object, {}
        ours = f"{LAUNCH}={_label(launch.name)}"
        for namespace in {handle.partition("/")[0] for handle in launch.handles}:
            for item in ask(jobsets, GROUP, VERSION, namespace, PLURAL, label_selector=ours)["items"]:
                found[f"{namespace}/{item['metadata']['name']}"] = item
        return found

    def _delete(self, handles: Sequence[str]) -> None:
        client, cluster = connect(self.context)
        delete = client.CustomObjectsApi(cluster).delete_namespaced_custom_object
        for handle in handles:
            namespace, _, name = handle.partition("/")
            ask(delete, GROUP, VERSION, namespace, PLURAL, name, may_lack=True)

    def logs(self, launch: Launch, unit: int) -> str:
        """The log of the unit's first pod, the newest if there were several."""
        client, cluster = connect(self.context)
        api = client.CoreV1Api(cluster)
        namespace, _, name = launch.handles[unit].partition("/")
        first = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/job-index=0"
        selector = f"{first},batch.kubernetes.io/job-completion-index=0,{LAUNCH}={_label(launch.name)}"
        pods = ask(api.list_namespaced_pod, namespace, label_selector=selector).items
        if not pods:
            return ""
        pod = max(pods, key=lambda pod: pod.metadata.creation_timestamp)
        if pod.status.phase == "Pending":  # it has no log yet, and to ask for one is an error
            return ""
        read = api.read_namespaced_pod_log
        # Taken as bytes: the client would raise on what is no UTF-8.
        log = ask(read, pod.metadata.name, namespace, container=CONTAINER, _preload_content=False, may_lack=True)
        return log.data.decode(errors="replace") if log else ""

    def _check(self, job: Job) -> None:
        valid = "name the container image that has slicedice, as launch/Dockerfile makes one"
        require(bool(self.image), "--launcher.image", self.image, valid)
        for field in ("namespace", "queue", "priority_class", "service_account", "volume_claim", "env_secret"):
            value = getattr(self, field)
            valid = "use a name of lower-case letters, digits, hyphens and dots, as Kubernetes has"
            good = NAME.fullmatch(value) or (not value and field != "namespace")
            require(bool(good), f"--launcher.{field}", value, valid)
        require(self.max_restarts >= 0, "--launcher.max_restarts", self.max_restarts, "use a number from 0")
        require(self.cpus >= 0, "--launcher.cpus", self.cpus, "use a number from 0")
        for label in filter(None, self.node_selector.split(",")):
            valid = "write LABEL=VALUE,LABEL=VALUE, as in cloud.google.com/gke-nodepool=big"
            require(bool(LABEL.fullmatch(label)), "--launcher.node_selector", self.node_selector, valid)
        most = 0 < job.max_concurrent < len(job.units)
        valid = "Kubernetes starts what fits: set a quota in Kueue, and name its queue by --launcher.queue"
        require(not most, "--max_concurrent", job.max_concurrent, valid)
        self._check_store(job.store.address)
        self._check_topology(job.topology)

    def _check_store(self, root: str) -> None:
        cache, mount = self.compilation_cache, self.volume_mount
        valid = "name a folder in a bucket, as in gs://bucket/compiled"
        require(not cache or cache.startswith("gs://"), "--launcher.compilation_cache", cache, valid)
        claimed = bool(self.volume_claim)
        require(claimed or not mount, "--launcher.volume_mount", mount, "name the volume by --launcher.volume_claim")
        if root.startswith("gs://"):
            require(not claimed, "--launcher.volume_claim", self.volume_claim, f"the store is in a bucket, {root}")
            return
        valid = (
            "pods do not reach this machine's folders: name a store in a bucket, gs://BUCKET/FOLDER, or by "
            "--launcher.volume_claim a volume that has the store at this same path"
        )
        require(claimed, "--store", root, valid)
        within = not mount or (os.path.isabs(mount) and os.path.commonpath([mount, root]) == os.path.normpath(mount))
        require(within, "--launcher.volume_mount", mount, f"name a folder that has the store in it, {root}")

    def _check_topology(self, topology: Topology | None) -> None:
        if topology is None:
            valid = (
                "say what to train on, as in v5e:4x4 or h100:8; or by --launcher.cpus how many cores a pod without an "
                "accelerator has"
            )
            require(self.cpus > 0, "--topology", None, valid)
            return
        require(self.cpus == 0, "--launcher.cpus", self.cpus, f"leave it out: the topology is {topology}")
        device, shape = topology.device, topology.shape
        if not topology.rate.is_tpu:
            require(
                topology.slices == 1, "--topology", str(topology), "GPUs are those of one machine: leave out slices"
            )
        one = (
            topology.rate.is_tpu and self.chips_per_host == 8 and (device, shape) in (("v5e", (2, 4)), ("v6e", (2, 4)))
        )
        valid = "use 4; or 8 for a slice 2x4 of v5e or v6e, on a machine of 8 chips"
        require(self.chips_per_host == 4 or one, "--launcher.chips_per_host", self.chips_per_host, valid)

    def _hosts(self, topology: Topology | None) -> tuple[int, int]:
        """Hosts of a slice, and slices."""
        if topology is None or not topology.rate.is_tpu:
            return 1, 1
        chips = topology.devices // topology.slices // topology.rate.per_chip
        return chips // self.chips_per_host, topology.slices

    def _manifest(self, job: Job, number: int) -> dict[str, Any]:
        hosts, slices = self._hosts(job.topology)
        labels = {"app.kubernetes.io/name": "slicedice", LAUNCH: _label(job.name), UNIT: str(number)}
        queue = {"kueue.x-k8s.io/queue-name": self.queue} if self.queue else {}
        # All hosts of a slice are one node pool's, and without this, pods could land in several alike.
        exclusive = (
            {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if hosts > 1 else {}
        )
        name = f"{job.name}-{number}"
        longest = f"{name}-{SLICE}-{slices - 1}-{hosts - 1}-xxxxx"
        require(
            len(longest) <= 63, "the launch's name", job.name, f"pods would be called {longest}: at most 63 characters"
        )
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "JobSet",
            "metadata": _filled(name=name, namespace=self.namespace, labels=labels | queue, annotations=exclusive),
            "spec": {
                "ttlSecondsAfterFinished": KEPT_SECONDS,
                "failurePolicy": {
                    "maxRestarts": self.max_restarts,
                    # Jobs fail by their pod failure policy where they were preempted, and nowhere else.
                    "rules": [
                        {
                            "name": "preempted",
                            "action": "RestartJobSetAndIgnoreMaxRestarts",
                            "onJobFailureReasons": ["PodFailurePolicy"],
                        }
                    ],
                },
                "replicatedJobs": [
                    {"name": SLICE, "replicas": slices, "template": {"spec": self._job(job, number, hosts, labels)}}
                ],
            },
        }

    def _job(self, job: Job, number: int, hosts: int, labels: Mapping[str, str]) -> dict[str, Any]:
        """The Job of a slice: none of its pods is replaced alone, since the others would not take it in."""
        again = {"containerName": CONTAINER, "operator": "In", "values": [AGAIN, TERMINATED]}
        return {
            "completionMode": "Indexed",
            "completions": hosts,
            "parallelism": hosts,
            "backoffLimit": 0,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": again},
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": dict(labels)}, "spec": self._pod(job, number)},
        }

    def _pod(self, job: Job, number: int) -> dict[str, Any]:
        topology, volumes, mounts = job.topology, [], []
        resources, selector, tolerations, security, platforms = self._placing(job)
        if self.volume_claim:
            volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": self.volume_claim}})
            mounts.append({"name": "store", "mountPath": self.volume_mount or job.store.address})
        if topology is not None and not topology.rate.is_tpu:  # NCCL shares memory, of which containers have 64 MiB
            volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
            mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        processes = 1 if self._hosts(topology) == (1, 1) else 0
        # So that a worker ends where its accelerator does not start, and does not train on the host's cores.
        environment = {"JAX_PLATFORMS": platforms}
        if self.compilation_cache:
            environment["JAX_COMPILATION_CACHE_DIR"] = self.compilation_cache
        container = _filled(
            name=CONTAINER,
            image=self.image,
            command=[_literal(word) for word in shlex.split(job.command(number, processes=processes))],
            env=[{"name": name, "value": _literal(value)} for name, value in environment.items()],
            envFrom=[{"secretRef": {"name": self.env_secret}}] if self.env_secret else [],
            resources=resources,
            volumeMounts=mounts,
        )
        return _filled(
            restartPolicy="Never",
            shareProcessNamespace=True,  # else Python is process 1, which no signal ends that it does not listen to yet
            terminationGracePeriodSeconds=GRACE_SECONDS,
            priorityClassName=self.priority_class,
            serviceAccountName=self.service_account,
            nodeSelector=selector,
            tolerations=tolerations,
            securityContext=security,
            containers=[container],
            volumes=volumes,
            automountServiceAccountToken=False,  # a worker asks nothing of Kubernetes
        )

    def _placing(self, job: Job) -> tuple[dict, dict[str, str], list[dict], dict, str]:
        """Of a pod: what it needs, on which nodes, whose taints it bears, as whom, and on JAX's which platforms."""
        topology, tolerations, security = job.topology, [], {}
        selector = dict(label.split("=") for label in self.node_selector.split(",") if label)
        if topology is None:
            resources = {"requests": {"cpu": str(self.cpus), "memory": str(job.bytes + 2**30)}}
            platforms = "cpu"
        elif topology.rate.is_tpu:
            resources = {"limits": {"google.com/tpu": str(self.chips_per_host)}}
            selector = {
                "cloud.google.com/gke-tpu-accelerator": TPUS[topology.device],
                "cloud.google.com/gke-tpu-topology": "x".join(map(str, topology.shape)),
            } | selector
            tolerations.append({"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"})
            security = {"runAsUser": 0}  # whose the TPU's device files are
            platforms = "tpu,cpu"
        else:
            resources = {"limits": {"nvidia.com/gpu": str(topology.devices)}}
            selector = selector or {"cloud.google.com/gke-accelerator": GPUS[topology.device]}
            tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
            platforms = "cuda,cpu"
        if self.spot:
            spot = "cloud.google.com/gke-spot"
            selector = selector | {spot: "true"}
            tolerations.append({"key": spot, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
        return resources, selector, tolerations, security, platforms


def get_launcher() -> JobSet:
    """The launcher with its own settings."""
    return JobSet()


def _phase(item: Mapping[str, Any]) -> Phase:
    """Where a JobSet is: suspended by Kueue or without a pod that runs it is queued."""
    status = item.get("status", {})
    true = {condition["type"] for condition in status.get("conditions", []) if condition["status"] == "True"}
    if true & {"Completed", "Failed"}:
        return Phase.ENDED
    jobs = status.get("replicatedJobsStatus", [])
    started = any(job.get("ready", 0) or job.get("succeeded", 0) for job in jobs)
    return Phase.RUNNING if started and "Suspended" not in true else Phase.QUEUED


def _label(name: str) -> str:
    """A launch's name as the value of a label, which may not end in a hyphen."""
    return name.rstrip("-")


def _literal(text: str) -> str:
    """Text that Kubernetes expands to itself: it reads $(NAME) as a variable, and $$ as a dollar."""
    return text.replace("$", "$$")


def _filled(**fields: Any) -> dict[str, Any]:
    """Fields that have something in them; none of those that pass through here means something when it is empty."""
    return {name: value for name, value in fields.items() if value or isinstance(value, int)}
