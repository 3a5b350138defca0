"""What has become of XManager's jobs on Vertex AI and Kubernetes, asked with the clients that XManager has itself."""

import importlib
from typing import Any

from slicedice.launching.protocol import Phase

JOB = "train"
"""Name of the job in each work unit. XManager's default is the image's name, which is none that Kubernetes takes."""


class VertexAI:
    """What XManager's client of Vertex AI says of custom jobs, by their resource names."""

    def __init__(self) -> None:
        self._vertex = importlib.import_module("xmanager.cloud.vertex")

    def connect(self) -> None:
        """Makes the client, or raises what it does where Google's credentials are not set up."""
        self._vertex.get_default_client()

    def name(self, unit: Any) -> str:
        """Of a work unit that has just been added."""
        [handle] = unit._non_local_execution_handles
        return handle.job_name

    def find(self, launch: str, unit: str) -> list[str]:
        """Of what there is of a work unit, by XManager's name of that."""
        jobs = self._vertex.aiplatform.CustomJob.list(filter=f'display_name="{launch}_{unit}"')
        return [job.resource_name for job in jobs]

    def phase(self, name: str, launch: str, unit: int) -> Phase:
        """Where a unit's job is; what Vertex AI does not know has ended."""
        states = self._vertex.aip_v1.JobState
        job = self._job(name, launch)
        if job is None:
            return Phase.ENDED
        state = job.state
        if state in (states.JOB_STATE_QUEUED, states.JOB_STATE_PENDING):
            return Phase.QUEUED
        over = states.JOB_STATE_SUCCEEDED, states.JOB_STATE_FAILED, states.JOB_STATE_CANCELLED, states.JOB_STATE_EXPIRED
        return Phase.ENDED if state in over else Phase.RUNNING

    def stop(self, name: str, launch: str, unit: int) -> None:
        """Cancels a unit's job."""
        if job := self._job(name, launch):
            job.cancel()

    def _job(self, name: str, launch: str) -> Any:
        """A job, which XManager names after the experiment; None if there is none, or it is not of the launch."""
        self._vertex.get_default_client()  # which says where to ask
        try:
            job = self._vertex.aiplatform.CustomJob.get(name)
        except importlib.import_module("google.api_core.exceptions").NotFound:
            return None
        return job if job.display_name.startswith(f"{launch}_") else None

    def logs(self, name: str, launch: str, unit: int) -> str:
        """Nothing: XManager has no way to ask for them. It prints the address of a page that has, at launch."""
        return ""


class Kubernetes:
    """Kubernetes jobs by namespace and name. XManager has no code for these questions, but the client to ask with."""

    def __init__(self) -> None:
        self._xmanager = importlib.import_module("xmanager.cloud.kubernetes")
        self._client = importlib.import_module("kubernetes.client")

    def connect(self) -> None:
        """Makes the client, or raises what it does where there is no kubeconfig."""
        self._xmanager.client()

    def name(self, unit: Any) -> str:
        """Of a work unit that has just been added."""
        [handle] = unit._non_local_execution_handles
        [job] = handle.jobs
        return f"{job.metadata.namespace or 'default'}/{job.metadata.name}"

    def find(self, launch: str, unit: str) -> list[str]:
        """What a work unit's job is called if there is one, by XManager's name of the unit."""
        return [f"default/{self._xmanager.convert_to_valid_label(f'{unit}_{JOB}')}"]

    def phase(self, name: str, launch: str, unit: int) -> Phase:
        """Where a unit's job is; what Kubernetes does not know has ended."""
        job = self._job(name, launch, unit)
        if job is None:
            return Phase.ENDED
        status = job.status
        if any(condition.type in ("Complete", "Failed") for condition in status.conditions or ()):
            return Phase.ENDED
        return Phase.RUNNING if status.ready else Phase.QUEUED

    def stop(self, name: str, launch: str, unit: int) -> None:
        """Deletes a unit's job; its pod is told to end by SIGTERM."""
        namespace, job = name.split("/")
        if self._job(name, launch, unit):
            self._batch().delete_namespaced_job(job, namespace, propagation_policy="Background")

    def _job(self, name: str, launch: str, unit: int) -> Any:
        """A job; None if there is none, or it trains something else: XManager does not name it after the launch."""
        namespace, job = name.split("/")
        try:
            found = self._batch().read_namespaced_job_status(job, namespace)
        except self._client.ApiException as error:
            if error.status == 404:
                return None
            raise
        words = [(container.args or [])[-2:] for container in found.spec.template.spec.containers]
        return found if words == [["--unit", f"{launch}/{unit}"]] else None

    def logs(self, name: str, launch: str, unit: int) -> str:
        """What a unit's pods have printed."""
        if not self._job(name, launch, unit):
            return ""
        namespace, job = name.split("/")
        core = self._client.CoreV1Api(self._xmanager.client().api_client)
        pods = core.list_namespaced_pod(namespace, label_selector=f"job-name={job}").items
        return "".join(core.read_namespaced_pod_log(pod.metadata.name, namespace) for pod in pods)

    def _batch(self) -> Any:
        return self._client.BatchV1Api(self._xmanager.client().api_client)
