"""The launcher `jobset` against an API server over HTTP, of the test's own, which keeps JobSets and pods."""

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from slicedice import sweep
from slicedice.launching import LaunchError, LeftoverError, Phase, load_launcher
from tests.launch.test_jobset_manifests import SCHEMA, misfits
from tests.launch.tpu_jobs import job, launched

TOKEN = "the-token-of-the-kubeconfig"

JOBSETS = re.compile(r"/apis/jobset\.x-k8s\.io/v1alpha2/namespaces/([^/]+)/jobsets(?:/([^/]+))?")
PODS = re.compile(r"/api/v1/namespaces/([^/]+)/pods(?:/([^/]+)/log)?")


class Cluster(ThreadingHTTPServer):
    """What there is: JobSets and pods by namespace/name, and the logs of pods."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobsets: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.pod_logs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refused = -1
        """The number of the creation that is refused, from 0."""
        self.unanswered = -1
        """The number of the creation after which the connection breaks, from 0."""


class Handler(BaseHTTPRequestHandler):
    server: Cluster

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, content: dict[str, Any] | bytes) -> None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, bytes) else "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def refuse(self, status: int, message: str) -> None:
        self.answer(status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message})

    def handle_method(self) -> None:
        address = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        self.server.requests.append(f"{self.command} {address.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "Unauthorized")
        elif found := JOBSETS.fullmatch(address.path):
            self.on_jobsets(found[1], found[2], asked, body)
        elif found := PODS.fullmatch(address.path):
            self.on_pods(found[1], found[2], asked)
        else:
            self.refuse(404, "the server could not find the requested resource")

    do_GET = do_POST = do_DELETE = handle_method

    def on_jobsets(self, namespace: str, name: str | None, asked: dict[str, str], body: bytes) -> None:
        have = self.server.jobsets
        if self.command == "POST":
            made = json.loads(body)
            key = f"{namespace}/{made['metadata']['name']}"
            if wrong := misfits(made, SCHEMA) or made["metadata"]["namespace"] != namespace:
                self.refuse(422, f"JobSet is invalid: {wrong}")
            elif key in have:
                self.refuse(409, f'jobsets.jobset.x-k8s.io "{made["metadata"]["name"]}" already exists')
            elif len(have) == self.server.refused:
                self.refuse(403, "jobsets.jobset.x-k8s.io is forbidden: exceeded quota")
            else:
                have[key] = made
                if len(have) - 1 == self.server.unanswered:
                    self.close_connection = True
                else:
                    self.answer(201, made)
        elif self.command == "DELETE":
            gone = have.pop(f"{namespace}/{name}", None)
            self.answer(200, {"kind": "Status"}) if gone else self.refuse(404, f'jobsets "{name}" not found')
        else:
            items = [item for key, item in have.items() if key.startswith(f"{namespace}/") and chosen(item, asked)]
            self.answer(200, {"kind": "JobSetList", "apiVersion": "jobset.x-k8s.io/v1alpha2", "items": items})

    def on_pods(self, namespace: str, log_of: str | None, asked: dict[str, str]) -> None:
        if log_of is None:
            pods = self.server.pods
            items = [item for key, item in pods.items() if key.startswith(f"{namespace}/") and chosen(item, asked)]
            self.answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
        elif asked.get("container") == "worker" and (log := self.server.pod_logs.get(f"{namespace}/{log_of}")):
            self.answer(200, log)
        else:
            self.refuse(404, f'pods "{log_of}" not found')


def chosen(item: dict[str, Any], asked: dict[str, str]) -> bool:
    """Whether the item has the labels asked for."""
    wanted = [label.split("=") for label in asked.get("labelSelector", "").split(",") if label]
    return all(item["metadata"]["labels"].get(label) == value for label, value in wanted)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """An API server, and a kubeconfig of it."""
    pytest.importorskip("kubernetes")
    with Cluster() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "me", "user": {"token": TOKEN}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield server
        server.shutdown()
        thread.join()


def launcher(**settings: Any) -> Any:
    return load_launcher("jobset", {"image": "image:1", "namespace": "moe", **settings})


def submitted(work, tmp_path):
    found = launcher()
    return found, launched(work, tuple(found.submit(work, found.render(work))), tmp_path)


def condition(kind: str, status: str = "True") -> dict[str, str]:
    return {
        "type": kind,
        "status": status,
        "reason": "Test",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def test_what_is_submitted_is_what_was_rendered_word_for_word(cluster, tmp_path):
    work = job(units=3)
    found = launcher()
    rendered = dict(found.render(work))
    rendered["unit-1.yaml"] = rendered["unit-1.yaml"].replace("image:1", "image:2")
    handles = found.submit(work, rendered)
    assert handles == [f"moe/{work.name}-{number}" for number in range(3)]
    for number, handle in enumerate(handles):
        assert cluster.jobsets[handle] == yaml.safe_load(rendered[f"unit-{number}.yaml"])


def test_conditions_are_phases(cluster, tmp_path):
    ready = {
        "replicatedJobsStatus": [{"name": "s", "ready": 1, "active": 1, "succeeded": 0, "failed": 0, "suspended": 0}]
    }
    waiting = {
        "replicatedJobsStatus": [{"name": "s", "ready": 0, "active": 1, "succeeded": 0, "failed": 0, "suspended": 0}]
    }
    statuses = [
        (None, Phase.QUEUED),  # the controller has not seen it
        ({"conditions": [condition("Suspended")]}, Phase.QUEUED),  # Kueue has not admitted it
        (waiting, Phase.QUEUED),  # its pods have no nodes
        ({"conditions": [condition("Suspended", "False")], **ready}, Phase.RUNNING),
        ({"conditions": [condition("RestartingJobSet")], **waiting}, Phase.QUEUED),
        ({"conditions": [condition("Completed"), condition("Suspended", "False")]}, Phase.ENDED),
        ({"conditions": [condition("Failed")], **ready}, Phase.ENDED),
        ({"conditions": [condition("Failed", "False")], **ready}, Phase.RUNNING),
        ("deleted", Phase.ENDED),
    ]
    found, launch = submitted(job(units=len(statuses)), tmp_path)
    for handle, (status, _) in zip(launch.handles, statuses, strict=True):
        if status == "deleted":
            del cluster.jobsets[handle]
        elif status is not None:
            cluster.jobsets[handle]["status"] = status
    cluster.requests.clear()
    assert list(found.poll(launch)) == [phase for _, phase in statuses]
    assert len(cluster.requests) == 1  # however many units there are


def test_phases_are_those_of_the_launch_alone(cluster, tmp_path):
    found, launch = submitted(job(name="abc"), tmp_path)
    # A name that ends in a hyphen has the same label, since none may end so.
    _, other = submitted(job(name="abc-"), tmp_path)
    for handle in other.handles:
        cluster.jobsets[handle]["status"] = {"conditions": [condition("Failed")]}
    assert list(found.poll(launch)) == [Phase.QUEUED, Phase.QUEUED]
    assert list(found.poll(other)) == [Phase.ENDED, Phase.ENDED]


def test_cancelling_deletes_the_units_that_are_named_and_no_others(cluster, tmp_path):
    found, launch = submitted(job(units=4), tmp_path)
    found.cancel(launch, [1, 3])
    assert sorted(cluster.jobsets) == [launch.handles[0], launch.handles[2]]
    found.cancel(launch, [1, 2])  # of which one is gone already
    assert sorted(cluster.jobsets) == [launch.handles[0]]


def test_a_launch_that_is_refused_half_way_leaves_nothing(cluster):
    cluster.refused = 2
    work = job(units=4)
    with pytest.raises(LaunchError, match=r"403.*exceeded quota"):
        launcher().submit(work, launcher().render(work))
    assert cluster.jobsets == {}


def test_what_was_made_without_an_answer_is_taken_back(cluster):
    cluster.unanswered = 2
    work = job(units=4)
    with pytest.raises(LaunchError, match="cannot be reached"):
        launcher().submit(work, launcher().render(work))
    assert len([request for request in cluster.requests if request.startswith("POST")]) == 3
    assert cluster.jobsets == {}


def test_what_was_made_as_ctrl_c_came_is_taken_back(cluster, monkeypatch):
    from kubernetes.client import CustomObjectsApi

    create = CustomObjectsApi.create_namespaced_custom_object

    def interrupted(*given: Any, **options: Any) -> Any:
        create(*given, **options)
        if len(cluster.jobsets) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(CustomObjectsApi, "create_namespaced_custom_object", interrupted)
    work = job(units=4)
    with pytest.raises(KeyboardInterrupt):
        launcher().submit(work, launcher().render(work))
    assert len([request for request in cluster.requests if request.startswith("POST")]) == 3
    assert cluster.jobsets == {}


def test_a_launch_that_is_refused_does_not_touch_another_of_its_name(cluster, monkeypatch):
    work = job(units=2)
    launcher().submit(work, launcher().render(work))
    before = dict(cluster.jobsets)
    # The API server asks about quotas before it finds that a name is taken.
    monkeypatch.setattr(Handler, "do_POST", lambda handler: handler.refuse(403, "exceeded quota"))
    with pytest.raises(LaunchError, match="exceeded quota"):
        launcher().submit(work, launcher().render(work))
    assert cluster.jobsets == before


def test_a_launch_does_not_touch_another_of_its_name(cluster):
    work = job(units=2)
    launcher().submit(work, launcher().render(work))
    before = dict(cluster.jobsets)
    told = rf"409.*already exists.*takes another name.*--namespace moe -l slicedice/launch={work.name}"
    with pytest.raises(LaunchError, match=told):
        launcher().submit(work, launcher().render(work))
    assert cluster.jobsets == before


def test_others_jobsets_are_neither_asked_about_nor_deleted(cluster, tmp_path):
    """As of a record that somebody else has written."""
    found, theirs = submitted(job(name="theirs"), tmp_path)
    _, mine = submitted(job(name="mine"), tmp_path)
    forged = replace(mine, handles=(theirs.handles[0], mine.handles[1]))
    pod(cluster, theirs, 0, "pod")
    assert list(found.poll(forged)) == [Phase.ENDED, Phase.QUEUED]
    assert found.logs(forged, 0) == ""
    assert found.logs(theirs, 0) == "log of pod\n"
    found.cancel(forged, [0, 1])
    assert sorted(cluster.jobsets) == sorted([*theirs.handles, mine.handles[0]])


def test_what_was_made_and_cannot_be_deleted_is_told(cluster, monkeypatch):
    cluster.refused = 1
    monkeypatch.setattr(Handler, "do_DELETE", lambda handler: handler.refuse(403, "deleting is forbidden"))
    work = job()
    with pytest.raises(LeftoverError, match=rf"exceeded quota.*still be there.*slicedice/launch={work.name}"):
        launcher().submit(work, launcher().render(work))


def pod(
    cluster,
    launch,
    unit: int,
    name: str,
    *,
    index: str = "0",
    made: str = "01",
    phase: str = "Running",
    slice_: str = "0",
):
    namespace, _, jobset = launch.handles[unit].partition("/")
    labels = {
        "slicedice/launch": launch.name,
        "jobset.sigs.k8s.io/jobset-name": jobset,
        "jobset.sigs.k8s.io/job-index": slice_,
        "batch.kubernetes.io/job-completion-index": index,
    }
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": labels,
        "creationTimestamp": f"2026-01-{made}T00:00:00Z",
    }
    cluster.pods[f"{namespace}/{name}"] = {"metadata": metadata, "status": {"phase": phase}}
    cluster.pod_logs[f"{namespace}/{name}"] = f"log of {name}\n".encode()


def test_logs_are_of_the_newest_first_pod(cluster, tmp_path):
    found, launch = submitted(job(), tmp_path)
    assert found.logs(launch, 0) == ""
    pod(cluster, launch, 0, "second-host", index="1", made="09")
    pod(cluster, launch, 0, "second-slice", slice_="1", made="09")
    pod(cluster, launch, 1, "other-unit", made="09")
    pod(cluster, launch, 0, "before", made="02")
    pod(cluster, launch, 0, "after", made="03")
    assert found.logs(launch, 0) == "log of after\n"
    cluster.pod_logs["moe/after"] = b"caf\xe9 \xff\n"
    assert found.logs(launch, 0) == "caf� �\n"
    del cluster.pod_logs["moe/after"]
    assert found.logs(launch, 0) == ""  # it went between the two requests
    pod(cluster, launch, 0, "waiting", made="04", phase="Pending")
    cluster.requests.clear()
    assert found.logs(launch, 0) == ""
    assert not [request for request in cluster.requests if request.endswith("/log")]


def test_a_cluster_that_refuses_is_quoted(cluster, monkeypatch, tmp_path):
    _, launch = submitted(job(), tmp_path)
    config = yaml.safe_load((tmp_path / "kubeconfig").read_text())
    config["users"][0]["user"]["token"] = "another"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    with pytest.raises(LaunchError, match=r"401.*Unauthorized"):
        launcher().poll(launch)


def test_a_cluster_that_is_away_is_told(cluster, tmp_path):
    config = yaml.safe_load((tmp_path / "kubeconfig").read_text())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:1"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    with pytest.raises(LaunchError, match="cannot be reached"):
        launcher().poll(launched(job(), ["moe/a-0", "moe/a-1"], tmp_path))
    with pytest.raises(LaunchError, match="cannot be reached") as away:
        launcher().submit(job(), launcher().render(job()))
    assert not isinstance(away.value, LeftoverError)  # to a cluster that was never reached nothing was sent


def test_without_a_kubeconfig_it_says_how_to_get_one(monkeypatch, tmp_path):
    pytest.importorskip("kubernetes")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(LaunchError, match="get-credentials"):
        launcher().submit(job(), launcher().render(job()))


def test_a_context_that_is_not_there_is_named(cluster):
    with pytest.raises(LaunchError, match="elsewhere"):
        launcher(context="elsewhere").submit(job(), launcher().render(job()))


def test_without_the_client_manifests_are_rendered_and_submitting_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    rendered = launcher().render(job())
    assert len(rendered) == 2
    with pytest.raises(LaunchError, match=re.escape("pip install 'slicedice[kubernetes]'")):
        launcher().submit(job(), rendered)


GRID = """
from slicedice.grid import Grid, axis


def get_grid(scale):
    return Grid(axis("model.experts", ["dense"]))
"""


def test_a_sweep_is_submitted_and_its_pods_commands_train_it(cluster, tmp_path, monkeypatch, capsys):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.py").write_text(GRID)
    (tmp_path / "texts").mkdir()
    for name in ("a", "b", "c", "d"):
        (tmp_path / "texts" / f"{name}.txt").write_text(f"{name} says: " + "the quick brown fox. " * 40)
    monkeypatch.chdir(tmp_path)
    plan = ["--grid", "mine", "--scale", "smoke", "--config.data.source=texts", "--config.budget.tokens=2560"]
    settings = ["image=slicedice:1", "namespace=moe", "volume_claim=nfs", "cpus=1"]
    flags = [f"--launcher.{setting}" for setting in settings]
    assert sweep.main([*plan, "--launcher", "jobset", *flags]) == 0
    assert len(cluster.jobsets) == 1
    sweep.main([*plan, "--launcher", "jobset", *flags])
    assert len(cluster.jobsets) == 1  # what is in the queue is not submitted again
    # A pod is not told to play several devices, as tests are.
    outside = {name: value for name, value in os.environ.items() if name not in ("NPROC", "JAX_NUM_CPU_DEVICES")}
    for jobset in cluster.jobsets.values():
        pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["volumeMounts"] == [{"name": "store", "mountPath": str(tmp_path / "runs")}]
        python, *words = [word.replace("$$", "$") for word in container["command"]]
        assert python == "python"
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        subprocess.run([sys.executable, *words], env=outside | environment, cwd="/", check=True, timeout=300)
        jobset["status"] = {"conditions": [condition("Completed")]}
    capsys.readouterr()
    assert sweep.main(["status", *plan, "--json"]) == 0
    assert {run["state"] for run in json.loads(capsys.readouterr().out)["runs"]} == {"done"}
