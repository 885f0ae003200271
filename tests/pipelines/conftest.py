"""A Kubeflow Pipelines server in memory, that takes and gives the models of `kfp_server_api`."""

import json
import re
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import uuid4

import kfp_server_api as api
import pytest
import yaml
from flask import Flask, Response, abort, request
from google.protobuf.json_format import ParseDict
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec
from werkzeug.serving import make_server

PARAMETER_TYPES = {"STRING": str, "STRUCT": dict, "NUMBER_INTEGER": int, "BOOLEAN": bool}
LISTED = {"page_token", "page_size", "sort_by", "filter", "namespace"}
CODEC = api.ApiClient()


class Server:
    """State of the server, and what it demands of callers."""

    def __init__(self, namespace="", credentials=None, login_page=False):
        self.namespace = namespace
        self.credentials = credentials
        self.login_page = login_page
        self.experiments, self.pipelines, self.versions = {}, {}, {}
        self.runs, self.recurring_runs = {}, {}
        self.calls, self.refused_calls = [], set()
        self.url = ""

    def app(self):
        app = Flask("kubeflow")
        root = "/apis/v2beta1"
        for method, path, handler, query in (
            ("GET", "/healthz", self.healthz, ()),
            ("GET", "/experiments", self.list_experiments, LISTED),
            ("POST", "/experiments", self.create_experiment, ()),
            ("GET", "/pipelines", self.list_pipelines, LISTED),
            ("POST", "/pipelines", self.create_pipeline, ()),
            ("GET", "/pipelines/<owner>/versions", self.list_versions, LISTED - {"namespace"}),
            ("POST", "/pipelines/upload_version", self.upload_version, {"name", "pipelineid"}),
            ("POST", "/runs", self.create_run, ("experiment_id",)),
            ("GET", "/recurringruns", self.list_recurring_runs, LISTED | {"experiment_id"}),
            ("POST", "/recurringruns", self.create_recurring_run, ()),
            ("DELETE", "/recurringruns/<key>", self.delete_recurring_run, ()),
            ("POST", "/recurringruns/<key>:disable", self.disable, ()),
            ("POST", "/recurringruns/<key>:enable", self.enable, ()),
        ):
            view = self.view(f"{method} {path}", handler, set(query))
            app.add_url_rule(root + path, f"{method} {path}", view, methods=[method])
        app.register_error_handler(Exception, refusal)
        return app

    def view(self, call, handler, query):
        def answer(**path):
            self.calls.append(call)
            if self.login_page:
                return Response("<html>multi_user? Log in to your account</html>", mimetype="text/html")
            given = request.headers.get("Authorization") or request.headers.get("Cookie")
            if self.credentials and given != self.credentials:
                abort(401, "Request header error: there is no user identity header.")
            if call in self.refused_calls:
                abort(403, f"User 'u' is not authorized\nwith reason: {call}.")
            if unknown := set(request.args) - query:
                abort(400, f"unknown query parameters {unknown}")
            return Response(
                json.dumps(CODEC.sanitize_for_serialization(handler(**path))), mimetype="application/json"
            )

        return answer

    def of_namespace(self, given):
        if (given or "") != self.namespace:
            abort(400, f"Invalid input error: the namespace is {self.namespace!r}, not {given!r}")

    def healthz(self):
        return api.V2beta1GetHealthzResponse(multi_user=bool(self.namespace), pipeline_store="database")

    def list_experiments(self):
        self.of_namespace(request.args.get("namespace"))
        found, token = page(self.experiments)
        return api.V2beta1ListExperimentsResponse(experiments=found, next_page_token=token)

    def create_experiment(self):
        made = body(api.V2beta1Experiment)
        self.of_namespace(made.namespace)
        unique(self.experiments, made.display_name)
        return keep(self.experiments, made, "experiment_id")

    def list_pipelines(self):
        self.of_namespace(request.args.get("namespace"))
        found, token = page(self.pipelines)
        return api.V2beta1ListPipelinesResponse(pipelines=found, next_page_token=token)

    def create_pipeline(self):
        made = body(api.V2beta1Pipeline)
        self.of_namespace(made.namespace)
        unique(self.pipelines, made.display_name)
        return keep(self.pipelines, made, "pipeline_id")

    def list_versions(self, owner):
        of_owner = {key: version for key, version in self.versions.items() if version.pipeline_id == owner}
        found, token = page(of_owner)
        return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=found, next_page_token=token)

    def upload_version(self):
        owner, name = request.args.get("pipelineid"), request.args.get("name")
        spec, *platform = yaml.safe_load_all(request.files["uploadfile"].read())
        ParseDict(spec, PipelineSpec())
        content = {"pipeline_spec": spec}
        if platform:
            ParseDict(platform[0], PlatformSpec())
            content["platform_spec"] = platform[0]
        if owner not in self.pipelines:
            abort(404, f"Pipeline {owner} not found")
        unique({key: v for key, v in self.versions.items() if v.pipeline_id == owner}, name)
        made = api.V2beta1PipelineVersion(
            pipeline_id=owner, display_name=name, name=name, pipeline_spec=content
        )
        return keep(self.versions, made, "pipeline_version_id")

    def create_run(self):
        made = body(api.V2beta1Run)
        self.runnable(made)
        return keep(self.runs, made, "run_id")

    def runnable(self, made):
        if made.experiment_id not in self.experiments:
            abort(404, f"Experiment {made.experiment_id} not found")
        reference = made.pipeline_version_reference
        version = self.versions.get(reference.pipeline_version_id)
        if version is None or version.pipeline_id != reference.pipeline_id:
            abort(404, f"Pipeline version {reference.pipeline_version_id} not found")
        wanted = version.pipeline_spec["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        given = made.runtime_config.parameters
        for name, parameter in wanted.items():
            if name not in given and not parameter.get("isOptional"):
                abort(400, f"parameter {name} is not optional, yet has neither default value nor user value")
            if name in given and not isinstance(given[name], PARAMETER_TYPES[parameter["parameterType"]]):
                abort(400, f"input parameter {name} requires type {parameter['parameterType']}")
        if unknown := set(given) - set(wanted):
            abort(400, f"unknown parameters {unknown}")

    def list_recurring_runs(self):
        self.of_namespace(request.args.get("namespace"))
        found, token = page(self.recurring_runs)
        return api.V2beta1ListRecurringRunsResponse(recurring_runs=found, next_page_token=token)

    def create_recurring_run(self):
        made = body(api.V2beta1RecurringRun)
        self.runnable(made)
        if not 1 <= int(made.max_concurrency) <= 10:
            abort(400, "The max concurrency of the job must be between 1 and 10")
        if made.mode not in ("ENABLE", "DISABLE"):
            abort(400, "mode must be ENABLE or DISABLE")
        if not re.fullmatch(r"([\d*/,?LW-]+ ){5}[\d*/,?L#-]+", made.trigger.cron_schedule.cron):
            abort(400, f"Schedule cron is not supported: {made.trigger.cron_schedule.cron}.")
        return keep(self.recurring_runs, made, "recurring_run_id")

    def delete_recurring_run(self, key):
        self.recurring_runs.pop(self.known(key))
        return {}

    def disable(self, key):
        self.recurring_runs[self.known(key)].mode = "DISABLE"
        return {}

    def enable(self, key):
        self.recurring_runs[self.known(key)].mode = "ENABLE"
        return {}

    def known(self, key):
        if key not in self.recurring_runs:
            abort(404, f"Recurring run {key} not found")
        return key


def refusal(error):
    code, text = getattr(error, "code", 400), getattr(error, "description", repr(error))
    status = api.GoogleRpcStatus(code=code, message=text, details=[])
    answer = json.dumps(CODEC.sanitize_for_serialization(status))
    return Response(answer, status=code, mimetype="application/json")


def body(kind):
    """Read the request as a model; a field that the model lacks is refused."""
    data = request.get_json(force=True)
    known_fields(data, kind.__name__)
    return CODEC.deserialize(SimpleNamespace(data=json.dumps(data)), kind.__name__)


def known_fields(data, name):
    kind = getattr(api, name, None)
    if kind is None or not getattr(kind, "openapi_types", None):
        return
    types = {field: kind.openapi_types[attribute] for attribute, field in kind.attribute_map.items()}
    if unknown := set(data) - set(types):
        abort(400, f"unknown fields {unknown} of {name}")
    for field, value in data.items():
        known_fields(value, types[field])


def page(items):
    """Return the page that the request asks for, and the token of the next."""
    chosen = list(items.values())
    if request.args.get("filter"):
        (predicate,) = json.loads(request.args["filter"])["predicates"]
        if predicate.pop("operation") not in ("EQUALS", 1) or predicate.pop("key") != "display_name":
            abort(400, "unknown filter")
        (name,) = predicate.values()
        chosen = [item for item in chosen if item.display_name == name]
    start, size = int(request.args.get("page_token") or 0), int(request.args.get("page_size") or 10)
    return chosen[start : start + size], str(start + size) if start + size < len(chosen) else None


def unique(items, name):
    if any(item.display_name == name for item in items.values()):
        abort(409, f"Already exist error: the name {name} already exists")


def keep(items, made, key):
    made.created_at = datetime.now(UTC)
    setattr(made, key, str(uuid4()))
    items[getattr(made, key)] = made
    return made


@pytest.fixture(scope="session")
def kubeflow_server():
    """A context manager that runs a `Server` in a thread and yields it with its address."""

    @contextmanager
    def running(**demands):
        state = Server(**demands)
        server = make_server("127.0.0.1", 0, state.app(), threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return running
