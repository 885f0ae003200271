"""Pipelines on a Kubeflow Pipelines server: versions, runs and schedules, through `kfp.Client`."""

import hashlib
import json
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kfp
import yaml
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from kfp.dsl.base_component import BaseComponent
from kfp_server_api import (
    ApiException,
    RecurringRunMode,
    V2beta1Pipeline,
    V2beta1PipelineVersion,
    V2beta1RecurringRun,
    V2beta1Run,
)
from urllib3.exceptions import HTTPError

import watchrank
from watchrank.config import ClusterSettings, KubeflowSettings
from watchrank.errors import InputError, WatchrankError
from watchrank_pipelines.cluster import placed

_REMEDIES = {
    400: "Correct what it names",
    401: "Renew the token in kubeflow.token_file or the cookie in kubeflow.cookie_file",
    403: "Ask for the right to it in the namespace of kubeflow.namespace, or name another",
    404: "Check kubeflow.host, and that nobody deleted it",
    409: "Someone else did the same at this moment: try again",
}
_PAGE = 100


class KubeflowError(WatchrankError):
    """The Kubeflow Pipelines server refused a call or did not answer."""

    exit_code = 7


@contextmanager
def connect(settings: KubeflowSettings, cluster: ClusterSettings) -> "Iterator[Kubeflow]":
    """Yield the server that the settings name, once it has answered; its runs sit on `cluster`.

    Raises:
        InputError: a file of the settings cannot be read, or the server wants a namespace.
        KubeflowError: the server refused a call, within the block too, or did not answer.
    """
    try:
        client = _client(settings)
        several = client.get_kfp_healthz().multi_user
        namespace = settings.namespace or client.get_user_namespace()
        if several and not namespace:
            raise InputError(f"Kubeflow at {settings.host} has many users. Set kubeflow.namespace.")
        yield Kubeflow(client, settings, cluster, namespace)
    except ApiException as error:
        remedy = _REMEDIES.get(error.status, "Look at the log of its ml-pipeline pod, then try again")
        reason = f"{error.status} {error.reason}{_message(error)}"
        raise KubeflowError(f"Kubeflow at {settings.host} refused: {reason}. {remedy}.") from None
    except HTTPError as error:
        raise KubeflowError(
            f"Kubeflow at {settings.host} does not answer: {type(getattr(error, 'reason', error)).__name__}. "
            "Check kubeflow.host and kubeflow.ca_file, and that a port forward runs."
        ) from None


class Kubeflow:
    """What this project keeps on a server: one pipeline and at most one schedule of each name."""

    def __init__(
        self, client: kfp.Client, settings: KubeflowSettings, cluster: ClusterSettings, namespace: str
    ) -> None:
        self._client = client
        self._settings = settings
        self._cluster = cluster
        self._namespace = namespace or None

    def upload(self, pipeline: BaseComponent) -> V2beta1PipelineVersion:
        """Upload the pipeline as a version named by the code version; one that is there is taken as it is."""
        with TemporaryDirectory() as folder:
            package = Path(folder) / f"{pipeline.name}.yaml"
            package.write_text(yaml.safe_dump_all(placed(pipeline, self._cluster)))
            name, owner = version_name(package.read_bytes()), self._pipeline_id(pipeline.name)
            found = self._client.list_pipeline_versions(owner, filter=_named(name)).pipeline_versions
            return found[0] if found else self._client.upload_pipeline_version(package, name, owner)

    def submit(self, pipeline: BaseComponent, arguments: dict[str, Any]) -> V2beta1Run:
        """Upload the pipeline and start a run of that version."""
        version = self.upload(pipeline)
        return self._client.run_pipeline(
            experiment_id=self._experiment_id(),
            job_name=f"{pipeline.name} {version.display_name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
            params=arguments,
            pipeline_id=version.pipeline_id,
            version_id=version.pipeline_version_id,
            service_account=self._settings.service_account,
        )

    def schedule(self, pipeline: BaseComponent, cron: str, arguments: dict[str, Any]) -> V2beta1RecurringRun:
        """Upload the pipeline and make or replace its schedule; a paused one stays paused.

        A run never starts beside another of the schedule, and of missed times only the last is made up for.
        The API changes no recurring run, so a new one takes the place of the old one, which is deleted last.

        Args:
            pipeline: what to run; the schedule keeps the version of now.
            cron: minute, hour, day, month and weekday, or these after the second; UTC on most servers.
            arguments: of every run.

        Raises:
            InputError: the cron expression has neither 5 nor 6 fields.
        """
        times = six_fields(cron)
        replaced = self.schedules(pipeline.name)
        version = self.upload(pipeline)
        made = self._client.create_recurring_run(
            experiment_id=self._experiment_id(),
            job_name=pipeline.name,
            description=version.display_name,
            cron_expression=times,
            max_concurrency=1,
            no_catchup=True,
            params=arguments,
            pipeline_id=version.pipeline_id,
            version_id=version.pipeline_version_id,
            enabled=not (replaced and all(old.mode == RecurringRunMode.DISABLE for old in replaced)),
            service_account=self._settings.service_account,
        )
        for old in replaced:
            self._client.delete_recurring_run(old.recurring_run_id)
        return made

    def schedules(self, name: str | None = None) -> list[V2beta1RecurringRun]:
        """Return the schedules of the namespace: all, or those of the pipeline of that name."""
        found: list[V2beta1RecurringRun] = []
        page = ""
        while True:
            answer = self._client.list_recurring_runs(
                page_token=page,
                page_size=_PAGE,
                namespace=self._namespace,
                filter=_named(name) if name else None,
            )
            found += answer.recurring_runs or []
            page = answer.next_page_token
            if not page:
                return found

    def pause(self, name: str) -> None:
        """Let the schedule of a pipeline start no more runs; one that runs goes on."""
        for schedule in self._present(name):
            self._client.disable_recurring_run(schedule.recurring_run_id)

    def resume(self, name: str) -> None:
        """Let the schedule of a pipeline start runs again."""
        for schedule in self._present(name):
            self._client.enable_recurring_run(schedule.recurring_run_id)

    def unschedule(self, name: str) -> None:
        """Delete the schedule of a pipeline; its runs stay."""
        for schedule in self._present(name):
            self._client.delete_recurring_run(schedule.recurring_run_id)

    def _present(self, name: str) -> list[V2beta1RecurringRun]:
        found = self.schedules(name)
        if not found:
            raise InputError(f"{name} has no schedule at {self._settings.host}. `schedule --cron` makes one.")
        return found

    def _pipeline_id(self, name: str) -> str:
        """Return the id of the pipeline, which is made where there is none.

        `kfp.Client.get_pipeline_id` looks for it in no namespace.
        """
        found = self._client.list_pipelines(filter=_named(name), namespace=self._namespace).pipelines
        if not found:
            body = V2beta1Pipeline(name=name, display_name=name, namespace=self._namespace)
            found = [self._client.pipelines.pipeline_service_create_pipeline(body)]
        return str(found[0].pipeline_id)

    def _experiment_id(self) -> str:
        made = self._client.create_experiment(self._settings.experiment, namespace=self._namespace)
        return str(made.experiment_id)


def version_name(package: bytes) -> str:
    """Return the name of a compiled pipeline: the version, git's short hash if there is one, and a checksum.

    The checksum tells apart pipelines of one commit with changes on top, or for another cluster.
    """
    content = json.dumps(list(yaml.safe_load_all(package)), sort_keys=True)
    parts = [watchrank.__version__, _commit(), hashlib.sha256(content.encode()).hexdigest()[:8]]
    return "-".join(filter(None, parts))


def six_fields(cron: str) -> str:
    """Return a cron expression as Kubeflow reads it: with a field for the second in front.

    Raises:
        InputError: it has neither 5 nor 6 fields.
    """
    fields = cron.split()
    if len(fields) not in (5, 6):
        raise InputError(
            f"The cron expression {cron!r} has {len(fields)} fields. "
            "Give minute, hour, day, month and weekday, such as '0 3 * * *'."
        )
    return " ".join(["0", *fields][-6:])


class _Client(kfp.Client):  # type: ignore[misc]
    """kfp's client, but it asks for the server's health once, not five times over 25 seconds."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        answer = self._healthz_api.healthz_service_get_healthz()
        kind = self._healthz_api.api_client.last_response.getheader("content-type") or ""
        if "json" not in kind:
            raise KubeflowError(
                "Kubeflow answered with a page, most likely its login. "
                "Check kubeflow.host; renew the cookie in kubeflow.cookie_file or set kubeflow.token_file."
            )
        return answer


def _client(settings: KubeflowSettings) -> _Client:
    token, cookie = settings.token_file, settings.cookie_file
    if token:
        _secret(token)  # a file that cannot be read is told of before the first request
    with warnings.catch_warnings(category=FutureWarning, action="ignore"):
        return _Client(
            host=settings.host,
            namespace=settings.namespace,
            credentials=ServiceAccountTokenVolumeCredentials(str(token)) if token else None,
            cookies=_secret(cookie) if cookie else None,
            ssl_ca_cert=str(settings.ca_file) if settings.ca_file else None,
        )


def _secret(file: Path) -> str:
    """Return what a file holds, without saying it."""
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {file}: {type(error).__name__}. Write the secret into it.") from None
    if not secret or not secret.isprintable():
        raise InputError(f"The file {file} does not hold one line. Write the secret alone into it.")
    return secret


def _named(name: str) -> str:
    """Return the API's filter for things of that name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _message(error: ApiException) -> str:
    """Return what the server said, on one line, or nothing where it sent no message."""
    try:
        text = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return ""
    return f", {' '.join(str(text).split()).rstrip('.')}"


def _commit() -> str:
    """Return git's short hash of this code, with -dirty behind it where it was changed; empty without git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    folder = Path(watchrank.__file__).parent
    try:
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return told.stdout.strip()
