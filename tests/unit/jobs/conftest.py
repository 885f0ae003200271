"""A Kubernetes API server in memory, as far as jobs of operators need one."""

import json
import threading
import time
from contextlib import contextmanager

import pytest
import yaml
from flask import Flask, Response, abort, request, stream_with_context
from kubernetes import client
from kubernetes.config import kube_config
from werkzeug.serving import make_server

NAMESPACE = "team"
CODEC = client.ApiClient()
OBJECTS = {
    "trainjobs": ("trainer.kubeflow.org", "v1alpha1", "TrainJob"),
    "sparkapplications": ("sparkoperator.k8s.io", "v1beta2", "SparkApplication"),
}


def model(plural):
    """Return the pydantic model that the operator's project publishes for its objects."""
    if plural == "trainjobs":
        return pytest.importorskip("kubeflow_trainer_api.models").TrainerV1alpha1TrainJob
    return pytest.importorskip("kubeflow_spark_api.models").SparkV1beta2SparkApplication


class Cluster:
    """State of the server.

    Each object that is made goes through the next of `scripts`, a state a look; its last state stays.
    """

    def __init__(self, plural):
        self.plural, self.model = plural, model(plural)
        self.group, self.version, self.kind = OBJECTS[plural]
        self.objects, self.states, self.looks = {}, {}, {}
        self.posted, self.calls, self.refused = [], [], {}
        self.scripts = [["Created", "Running", "Complete"]]
        self.lines = ["one", "two", "three"]
        self.message = "jobset failed due to one or more job failures"
        self.labels, self.container = {}, "node"
        self.at_look = {}
        self.cut_after, self.seconds_a_line = None, 0
        self.url = ""

    def app(self):
        app = Flask("kubernetes")
        objects = f"/apis/{self.group}/{self.version}/namespaces/{NAMESPACE}/{self.plural}"
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        for method, path, handler, query in (
            ("POST", objects, self.create, {}),
            ("GET", f"{objects}/<name>", self.get, {}),
            ("DELETE", f"{objects}/<name>", self.delete, {"propagationPolicy": "Foreground"}),
            ("GET", pods, self.list_pods, {"labelSelector": None}),
            (
                "GET",
                f"{pods}/<name>/log",
                self.log,
                {"container": self.container, "follow": "True", "timestamps": "True"},
            ),
        ):
            view = self.view(f"{method} {path.rsplit('/', 1)[-1]}", handler, query)
            app.add_url_rule(path, f"{method} {path}", view, methods=[method])
        app.register_error_handler(Exception, refusal)
        return app

    def view(self, call, handler, query):
        def answer(**path):
            self.calls.append(call)
            if self.refused.get(call):
                code = self.refused[call].pop(0)
                if code:
                    abort(code, f"User 'u' cannot do\n{call}")
            given = request.args.to_dict()
            for name, wanted in query.items():
                if given.pop(name, None) != (wanted or request.args.get(name)):
                    abort(400, f"{name} must be {wanted}")
            if given:
                abort(400, f"unknown query parameters {given}")
            found = handler(**path)
            if isinstance(found, Response):
                return found
            return Response(json.dumps(CODEC.sanitize_for_serialization(found)), mimetype="application/json")

        return answer

    @property
    def alive(self):
        """The objects that nobody has deleted."""
        return [found for found in self.objects.values() if "deletionTimestamp" not in found["metadata"]]

    def create(self):
        body = request.get_json(force=True)
        expected = (f"{self.group}/{self.version}", self.kind)
        if (body["apiVersion"], body["kind"]) != expected:
            abort(400, f"the object must be a {expected}")
        if self.model.from_dict(body).to_dict() != body:
            abort(422, "strict decoding error: unknown fields")
        name = body["metadata"]["name"]
        if name in self.objects:
            abort(409, f"{self.plural} {name} already exists")
        self.posted.append(body)
        return self.place(body)

    def place(self, body):
        name = body["metadata"]["name"]
        self.objects[name], self.looks[name] = json.loads(json.dumps(body)), 0
        self.states[name] = self.scripts.pop(0)
        return body

    def get(self, name):
        found = self.known(name)
        if "deletionTimestamp" in found["metadata"]:
            return self.objects.pop(name)
        if act := self.at_look.get(self.looks[name]):
            act()
        found["status"] = self.status(self.state(name))
        self.looks[name] += 1
        return found

    def state(self, name):
        states = self.states[name]
        return states[min(self.looks[name], len(states) - 1)]

    def status(self, state):
        if self.plural == "sparkapplications":
            state = {"Created": "SUBMITTED", "Running": "RUNNING", "Complete": "COMPLETED"}.get(
                state, "FAILED"
            )
            told = {"errorMessage": self.message} if state == "FAILED" else {}
            return {"applicationState": {"state": state, **told}, "driverInfo": {}}
        if state not in ("Complete", "Failed"):
            return {"conditions": []}
        told = {"reason": "AllJobsCompleted", "message": self.message if state == "Failed" else ""}
        moment = "2026-01-01T00:00:00Z"
        return {"conditions": [{"type": state, "status": "True", "lastTransitionTime": moment, **told}]}

    def delete(self, name):
        self.known(name)["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        return {"kind": "Status", "status": "Success"}

    def known(self, name):
        if name not in self.objects:
            abort(404, f"{self.plural} {name} not found")
        return self.objects[name]

    def list_pods(self):
        labels = dict(pair.split("=") for pair in request.args["labelSelector"].split(","))
        found = [
            name
            for name in self.objects
            if labels == {k: v.format(name=name) for k, v in self.labels.items()}
        ]
        return client.V1PodList(items=[self.pod(name) for name in found])

    def pod(self, name):
        phase = {"Created": "Pending", "Running": "Running", "Complete": "Succeeded"}.get(
            self.state(name), "Failed"
        )
        metadata = client.V1ObjectMeta(name=f"{name}-0", uid=name, creation_timestamp="2026-01-01T00:00:00Z")
        return client.V1Pod(metadata=metadata, status=client.V1PodStatus(phase=phase))

    def log(self, name):
        job = name.removesuffix("-0")
        self.known(job)
        if self.state(job) == "Created":
            abort(400, f"container {self.container!r} in pod {name!r} is waiting to start")

        def told():
            for place, line in enumerate(self.lines):
                if place == self.cut_after and self.state(job) == "Running":
                    return
                time.sleep(self.seconds_a_line)
                yield f"2026-01-01T00:00:{place:02}.000000000Z {line}\n"
            while job in self.objects and self.state(job) == "Running":
                time.sleep(0.01)

        return Response(stream_with_context(told()), mimetype="text/plain")


def refusal(error):
    code, text = getattr(error, "code", 500), getattr(error, "description", repr(error))
    status = {"kind": "Status", "status": "Failure", "message": text, "code": code}
    return Response(json.dumps(status), status=code, mimetype="application/json")


@pytest.fixture
def kubernetes_server(tmp_path, monkeypatch):
    """A context manager that runs a `Cluster` in a thread; the kube configuration names it."""

    @contextmanager
    def running(plural, labels, container):
        cluster = Cluster(plural)
        cluster.labels, cluster.container = labels, container
        server = make_server("127.0.0.1", 0, cluster.app(), threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        cluster.url = f"http://127.0.0.1:{server.server_port}"
        file = tmp_path / "kubeconfig"
        names = {"cluster": "c", "user": "u"}
        file.write_text(
            yaml.safe_dump(
                {
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": names}],
                    "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
                    "users": [{"name": "u", "user": {}}],
                }
            )
        )
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(file))
        try:
            yield cluster
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return running
