# pyright: reportMissingImports=false
"""What XManager makes of our work units on Vertex AI and Kubernetes, of which neither is here.

XManager's own code runs, up to what goes to Google's clients: Vertex AI's is a mock, Kubernetes' talks to a server of
this test.
"""

import asyncio
import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from slicedice import files
from slicedice.launching import Job, LaunchError, LeftoverError, Phase, WorkUnit, load_launcher
from slicedice.store import Launch, Store

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("xmanager") is None, reason="needs the extra `xmanager`"),
    # XManager's: of Alembic, and where launching fails, of async_generator.
    pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:the .type, exc, tb. signature of athrow:DeprecationWarning"),
]

RUNS = "0123456789ab", "ba9876543210"
PLACED = files.load("launch", "xmanager").PLACED
IMAGE = "gcr.io/project/slicedice:1"


def requirements(accelerator: str, devices: int) -> Any:
    from xmanager import xm

    launcher: Any = load_launcher("xmanager", {"accelerator": accelerator})
    return xm.JobRequirements(**launcher._requirements(devices))


@pytest.fixture(autouse=True)
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home folder, where XManager's database is, and a project of Google's."""
    from xmanager.cloud import auth
    from xmanager.xm_local.storage import database

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GOOGLE_CLOUD_BUCKET_NAME", "bucket")
    monkeypatch.setattr(auth, "get_project_name", lambda: "project")
    monkeypatch.setattr(auth, "get_service_account", lambda: "xmanager@project.iam.gserviceaccount.com")
    for cached in (database.database, database.db_settings):
        cached.cache_clear()
    yield
    if database.database.cache_info().currsize:
        database.database().engine.dispose()
    database.database.cache_clear()


def job(root: str, devices: int = 1) -> Job:
    return Job("grid-12ab-1", Store(root), tuple(WorkUnit((run,), devices) for run in RUNS))


def launched(job: Job, handles: tuple[str, ...]) -> Launch:
    return Launch(job.name, Path(), "xmanager", {}, tuple(unit.runs for unit in job.units), handles)


# Vertex AI


@pytest.mark.parametrize(("accelerator", "counts"), PLACED["vertex"].items())
def test_vertex_has_machines_for_what_is_placed_there(accelerator: str, counts: tuple[int, ...]):
    from xmanager import xm, xm_local
    from xmanager.cloud import vertex
    from xmanager.xm_local import executables

    family = {"a100": "a2-", "l4_24th": "g2-", "tpu_v2": "cloud-tpu", "tpu_v3": "cloud-tpu"}.get(accelerator, "n1-")
    for count in counts:
        executor = xm_local.Vertex(requirements(accelerator, count))
        spec = vertex.get_machine_spec(xm.Job(executables.GoogleContainerRegistryImage("i", IMAGE), executor))
        assert spec["accelerator_count"] == count
        assert accelerator.partition("_24th")[0].upper() in spec["accelerator_type"].name
        assert spec["machine_type"].startswith(family)
        if family == "a2-":  # these come with so many, and no fewer
            assert spec["machine_type"].endswith(f"-{count}g")


def test_vertex_has_no_machines_for_others_yet():
    # When this fails, XManager places more than launch/xmanager.py lets it.
    from xmanager import xm, xm_local
    from xmanager.cloud import vertex
    from xmanager.xm_local import executables

    image = executables.GoogleContainerRegistryImage("i", IMAGE)
    with pytest.raises(KeyError):
        vertex.get_machine_spec(xm.Job(image, xm_local.Vertex(xm.JobRequirements(tpu_v5e="2x4"))))
    for gpu in ("a100_80gib", "h100", "h200"):  # machines of a2-ultragpu, a3
        spec = vertex.get_machine_spec(xm.Job(image, xm_local.Vertex(requirements(gpu, 8))))
        assert spec["machine_type"].startswith("n1-")


@pytest.fixture
def vertex_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[mock.Mock]:
    """What Google's library calls over the network."""
    import google.auth
    import google.cloud.aiplatform_v1 as aiplatform_v1
    from google.auth import credentials
    from google.cloud.aiplatform import utils
    from xmanager.cloud import vertex

    monkeypatch.setattr(google.auth, "default", lambda **_: (credentials.AnonymousCredentials(), "project"))
    monkeypatch.setattr(vertex, "_default_client", None)
    with mock.patch.object(utils.ClientWithOverride, "WrappedClient") as client:
        made: list[str] = []

        def create(custom_job: Any, **_: Any) -> Any:
            made.append(f"projects/project/locations/us-central1/customJobs/{len(made) + 1}")
            return aiplatform_v1.CustomJob(name=made[-1], display_name=custom_job.display_name)

        client.return_value.create_custom_job.side_effect = create
        client.return_value.list_custom_jobs.return_value = []
        yield client.return_value


def test_vertex_is_sent_a_custom_job_for_each_unit(vertex_client: mock.Mock):
    launcher = load_launcher("xmanager", {"executor": "vertex", "image": IMAGE, "accelerator": "t4", "cpu": "8"})
    mine = job("/gcs/bucket/runs", 2)
    handles = launcher.submit(mine, launcher.render(mine))
    assert handles == [f"projects/project/locations/us-central1/customJobs/{number}" for number in (1, 2)]
    sent = [call.kwargs["custom_job"] for call in vertex_client.create_custom_job.call_args_list]
    for number, custom in enumerate(sent):
        title, _, unit = custom.display_name.partition("_")
        assert title == "grid-12ab-1"
        assert unit.endswith(f"_{number + 1}")
        [pool] = custom.job_spec.worker_pool_specs
        assert pool.replica_count == 1
        assert (pool.machine_spec.machine_type, pool.machine_spec.accelerator_count) == ("n1-highcpu-16", 2)
        assert pool.machine_spec.accelerator_type.name == "NVIDIA_TESLA_T4"
        assert pool.container_spec.image_uri == IMAGE
        command = f"python -m slicedice.work --store /gcs/bucket/runs --unit grid-12ab-1/{number}"
        assert list(pool.container_spec.args) == command.split()


def test_when_vertex_refuses_what_it_took_is_taken_back(vertex_client: mock.Mock):
    takes = vertex_client.create_custom_job.side_effect
    answers = [takes, ValueError("the quota is used up")]

    def create(**given: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer(**given)

    vertex_client.create_custom_job.side_effect = create
    vertex_client.get_custom_job.side_effect = lambda name, **_: mock.Mock(**{"name": name})
    launcher = load_launcher("xmanager", {"executor": "vertex", "image": IMAGE})
    mine = job("/gcs/bucket/runs")
    with pytest.raises(LaunchError, match="the quota is used up"):
        launcher.submit(mine, launcher.render(mine))
    assert vertex_client.cancel_custom_job.call_count == 1


def test_what_is_interrupted_is_taken_back_and_told_where_it_cannot_be(vertex_client: mock.Mock):
    takes = vertex_client.create_custom_job.side_effect
    made = iter([takes])

    def create(**given: Any) -> Any:
        for answer in made:
            return answer(**given)
        raise asyncio.CancelledError  # as where Ctrl-C finds it

    vertex_client.create_custom_job.side_effect = create
    vertex_client.get_custom_job.side_effect = lambda name, **_: mock.Mock(
        display_name="grid-12ab-1_x_1", **{"name": name}
    )
    launcher = load_launcher("xmanager", {"executor": "vertex", "image": IMAGE})
    mine = job("/gcs/bucket/runs")
    with pytest.raises(asyncio.CancelledError):
        launcher.submit(mine, launcher.render(mine))
    assert vertex_client.cancel_custom_job.call_count == 1
    made = iter([takes])
    vertex_client.cancel_custom_job.side_effect = ValueError("no")
    with pytest.raises(LeftoverError, match="still be there: projects/project/locations/us-central1/customJobs/2"):
        launcher.submit(mine, launcher.render(mine))


def test_what_vertex_made_without_an_answer_is_taken_back(vertex_client: mock.Mock):
    takes, made = vertex_client.create_custom_job.side_effect, list[Any]()

    def create(**given: Any) -> Any:
        made.append(takes(**given))
        if len(made) == 2:
            raise ConnectionError("the answer is lost")
        return made[-1]

    vertex_client.create_custom_job.side_effect = create
    vertex_client.get_custom_job.side_effect = lambda name, **_: next(one for one in made if one.name == name)
    vertex_client.list_custom_jobs.side_effect = lambda request, **_: [
        one for one in made if request["filter"] == f'display_name="{one.display_name}"'
    ]
    launcher = load_launcher("xmanager", {"executor": "vertex", "image": IMAGE})
    mine = job("/gcs/bucket/runs")
    with pytest.raises(LaunchError, match="the answer is lost"):
        launcher.submit(mine, launcher.render(mine))
    cancelled = [call.kwargs["name"] for call in vertex_client.cancel_custom_job.call_args_list]
    assert cancelled == [one.name for one in made]
    made.clear()
    vertex_client.list_custom_jobs.side_effect = ConnectionError("away")
    with pytest.raises(LeftoverError, match=r"the answer is lost.*still be there: grid-12ab-1_\d+_2"):
        launcher.submit(mine, launcher.render(mine))


def test_vertex_says_where_units_are(vertex_client: mock.Mock):
    import google.cloud.aiplatform_v1 as aiplatform_v1
    from google.api_core.exceptions import NotFound, PermissionDenied

    states = aiplatform_v1.JobState
    names = {
        "QUEUED": Phase.QUEUED, "PENDING": Phase.QUEUED, "RUNNING": Phase.RUNNING, "CANCELLING": Phase.RUNNING,
        "SUCCEEDED": Phase.ENDED, "FAILED": Phase.ENDED, "CANCELLED": Phase.ENDED,
    }  # fmt: skip
    prefix = "projects/project/locations/us-central1/customJobs/"

    def get(name: str, **_: Any) -> Any:
        number = int(name.rpartition("/")[2])
        if number == 99:
            raise NotFound("no such job")
        if number == 100:
            raise PermissionDenied("not yours")
        title = "theirs_1" if number == 98 else "grid-12ab-1_x_1"
        state = states[f"JOB_STATE_{list(names)[number % 98]}"]
        return aiplatform_v1.CustomJob(name=name, state=state, display_name=title)

    vertex_client.get_custom_job.side_effect = get
    launcher = load_launcher("xmanager", {"executor": "vertex", "image": IMAGE})
    mine = job("/gcs/bucket/runs")
    handles = tuple(f"{prefix}{number}" for number in (*range(len(names)), 98, 99))
    assert launcher.poll(launched(mine, handles)) == [*names.values(), Phase.ENDED, Phase.ENDED]
    with pytest.raises(LaunchError, match="not yours"):
        launcher.poll(launched(mine, (f"{prefix}100",)))
    launcher.cancel(launched(mine, handles), [2, len(names), len(names) + 1])  # of which one is another's, one gone
    assert [call.kwargs["name"] for call in vertex_client.cancel_custom_job.call_args_list] == [handles[2]]


# Kubernetes


@pytest.mark.parametrize(("accelerator", "counts"), PLACED["kubernetes"].items())
def test_kubernetes_pods_ask_for_what_is_placed_there(accelerator: str, counts: tuple[int, ...]):
    from xmanager import xm_local
    from xmanager.cloud import kubernetes

    for count in counts:
        executor = xm_local.Kubernetes(requirements(accelerator, count))
        assert kubernetes.requirements_from_executor(executor).limits == {"nvidia.com/gpu": str(count)}
        gke = {"cloud.google.com/gke-accelerator": f"nvidia-tesla-{accelerator}"}
        assert kubernetes.node_selector_from_executor(executor) == gke


def test_kubernetes_pods_ask_for_no_tpu_yet():
    # When this fails, XManager places more than launch/xmanager.py lets it.
    from xmanager import xm, xm_local
    from xmanager.cloud import kubernetes

    executor = xm_local.Kubernetes(xm.JobRequirements(tpu_v5e="2x4"))
    assert kubernetes.requirements_from_executor(executor).limits == {}
    assert kubernetes.node_selector_from_executor(executor) == {}


class Cluster(BaseHTTPRequestHandler):
    """As much of Kubernetes' interface as is asked for: jobs by name, the pods and logs of each."""

    jobs: dict[str, dict[str, Any]]
    deleted: list[str]
    unanswered = 0
    """The number of the job after whose creation the connection breaks, from 1."""

    def answer(self, content: Any, status: int = 200) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        name = path.removesuffix("/status").rpartition("/")[2]
        if path.endswith("/services"):
            self.answer({"items": []})
        elif path.endswith("/pods"):
            job = query.partition("job-name%3D")[2]
            self.answer({"items": [{"metadata": {"name": f"{job}-x1"}}]})
        elif path.endswith("/log"):
            self.answer(f"said by {path.split('/')[-2]}\n")
        elif name in self.jobs:
            self.answer(self.jobs[name])
        else:
            self.answer({"reason": "NotFound"}, 404)

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/jobs"):
            self.jobs[content["metadata"]["name"]] = content
            if len(self.jobs) == self.unanswered:
                return
        self.answer(content)

    def do_DELETE(self) -> None:
        self.deleted.append(self.path.rpartition("/")[2])
        self.answer({})

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Cluster]]:
    from kubernetes import config
    from xmanager.cloud import kubernetes

    handler = type("ThisCluster", (Cluster,), {"jobs": {}, "deleted": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        here = tmp_path / "kubeconfig"
        here.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(here))
        kubernetes.client.cache_clear()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield handler
        server.shutdown()
        thread.join()
        kubernetes.client().api_client.rest_client.pool_manager.clear()
        kubernetes.client.cache_clear()


def test_kubernetes_is_sent_a_job_for_each_unit(cluster: type[Cluster]):
    settings = {"executor": "kubernetes", "image": IMAGE, "accelerator": "t4", "cpu": "4", "ram": "16"}
    launcher = load_launcher("xmanager", settings)
    mine = job("/store", 2)
    handles = launcher.submit(mine, launcher.render(mine))
    assert handles == [f"default/{name}" for name in cluster.jobs]
    for number, (name, sent) in enumerate(cluster.jobs.items()):
        assert name.endswith(f"-{number + 1}-train")
        pod = sent["spec"]["template"]["spec"]
        assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}
        [container] = pod["containers"]
        assert container["image"] == IMAGE
        command = f"python -m slicedice.work --store /store --unit grid-12ab-1/{number}"
        assert container["args"] == command.split()
        limits = {"nvidia.com/gpu": "2", "cpu": "4", "memory": str(16 * 2**30)}
        assert container["resources"]["limits"] == limits
        assert "volumes" not in pod  # which docs/launching/xmanager.md tells


def test_what_kubernetes_made_without_an_answer_is_taken_back(cluster: type[Cluster]):
    cluster.unanswered = 2
    launcher = load_launcher("xmanager", {"executor": "kubernetes", "image": IMAGE})
    mine = job("/store")
    with pytest.raises(LaunchError, match="could not launch"):
        launcher.submit(mine, launcher.render(mine))
    assert len(cluster.jobs) == 2
    assert cluster.deleted == [f"{name}?propagationPolicy=Background" for name in cluster.jobs]


def test_where_kubernetes_cannot_be_asked_nothing_is_said_to_be_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from kubernetes import config
    from xmanager.cloud import kubernetes

    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    kubernetes.client.cache_clear()
    launcher = load_launcher("xmanager", {"executor": "kubernetes", "image": IMAGE})
    with pytest.raises(LaunchError, match="kube-config") as refused:
        launcher.submit(job("/store"), launcher.render(job("/store")))
    assert not isinstance(refused.value, LeftoverError)


def test_kubernetes_says_where_units_are(cluster: type[Cluster]):
    launcher = load_launcher("xmanager", {"executor": "kubernetes", "image": IMAGE})
    failed = {"type": "Failed", "status": "True"}
    statuses = [{}, {"active": 1, "ready": 0}, {"active": 1, "ready": 1}, {"failed": 1, "conditions": [failed]}]
    for number, status in enumerate(statuses):
        cluster.jobs[f"j-{number}"] = trains(f"j-{number}", f"grid-12ab-1/{number}", status)
    cluster.jobs["theirs"] = trains("theirs", "theirs/5", {"active": 1, "ready": 1})
    launch = launched(job("/store"), tuple(f"default/{name}" for name in ("j-0", "j-1", "j-2", "j-3", "j-4", "theirs")))
    q, r, e = Phase.QUEUED, Phase.RUNNING, Phase.ENDED
    assert launcher.poll(launch) == [q, q, r, e, e, e]
    assert launcher.logs(launch, 2) == "said by j-2-x1\n"
    assert launcher.logs(launch, 5) == ""
    launcher.cancel(launch, [1, 4, 5])  # of which one is gone, and one another's
    assert cluster.deleted == ["j-1?propagationPolicy=Background"]


def trains(name: str, unit: str, status: dict[str, Any]) -> dict[str, Any]:
    """A job of Kubernetes that trains a unit."""
    container = {"name": name, "args": ["python", "-m", "slicedice.work", "--store", "/store", "--unit", unit]}
    pod = {"spec": {"containers": [container]}}
    return {"metadata": {"name": name}, "spec": {"template": pod}, "status": status}
