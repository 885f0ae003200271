"""Work that an operator does on a Kubernetes cluster: made, followed with its log, deleted when cancelled.

A job is a custom object whose name tells what it does: one of the same name that runs is taken up, not
started twice. The cluster is the one of the pod that this runs in, or of the kube configuration.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from kubernetes import client, config, watch
from kubernetes.client import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from watchrank.config import OperatorSettings
from watchrank.errors import InputError, JobError
from watchrank.termination import terminable

logger = logging.getLogger(__name__)

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_REQUEST_SECONDS = 60
_LOG_SECONDS = 10
_FAILED_LOOKS = 10
_REMEDIES = {
    400: "Correct what it names",
    401: "Renew the credentials",
    403: "Give the service account the right to it",
    404: "Install the operator, and check the namespace",
    422: "Correct what it names",
}


@dataclass(frozen=True)
class Status:
    """Where a job stands, and what its operator says of it."""

    phase: Literal["running", "succeeded", "failed"]
    message: str


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of custom object that an operator runs."""

    name: str
    group: str
    version: str
    plural: str
    pods: str
    """Labels of the pod whose log is told; {name} is the job's."""
    container: str
    status: Callable[[dict[str, Any]], Status]
    """What the object's `status` says."""


def run_job(
    kind: Kind,
    manifest: dict[str, Any],
    settings: OperatorSettings,
    tell: Callable[[str], None] = print,
) -> None:
    """Make a job, or take up the one of its name; tell its log until it ends, and delete it.

    One that failed stays to be looked at, and the next call replaces it. Where the cluster cannot be reached
    for ten looks, the job goes on and the next call takes it up.

    Args:
        kind: of object.
        manifest: the object, with its name.
        settings: where, and how long it may take.
        tell: is given each line of the log, also those from before it was taken up.

    Raises:
        InputError: there is no cluster, or no namespace.
        JobError: the job failed or took too long, or Kubernetes refused a call or did not answer.
    """
    name = manifest["metadata"]["name"]
    with _answering(kind, name), terminable():
        jobs = _Jobs(kind, settings.namespace or _own_namespace(), _connect())
        deadline = time.monotonic() + settings.timeout_seconds
        try:
            jobs.make(manifest, deadline, settings.poll_seconds)
            jobs.follow(name, deadline, settings.poll_seconds, tell)
        except (KeyboardInterrupt, SystemExit, TimeoutError):
            jobs.delete(name)
            raise
        jobs.delete(name)


class _Jobs:
    """The jobs of a kind in a namespace."""

    def __init__(self, kind: Kind, namespace: str, api: client.ApiClient) -> None:
        self.kind, self.namespace = kind, namespace
        self.place = (kind.group, kind.version, namespace, kind.plural)
        self.objects, self.core = client.CustomObjectsApi(api), client.CoreV1Api(api)

    def make(self, manifest: dict[str, Any], deadline: float, poll_seconds: float) -> None:
        """Make the job; keep one of its name that has not failed and is not being deleted.

        Raises:
            TimeoutError: one that is being deleted stays for too long.
        """
        name = manifest["metadata"]["name"]
        found = self._find(name)
        if found and self.kind.status(found).phase == "failed":
            self.delete(name)
            found = self._find(name)
        while found and "deletionTimestamp" in found["metadata"]:
            if time.monotonic() > deadline:
                raise TimeoutError("the former one of its name is still being deleted")
            time.sleep(poll_seconds)
            found = self._find(name)
        if found:
            logger.info("Taking up the %s %s/%s.", self.kind.name, self.namespace, name)
            return
        self.objects.create_namespaced_custom_object(*self.place, manifest, _request_timeout=_REQUEST_SECONDS)
        logger.info("Made the %s %s/%s.", self.kind.name, self.namespace, name)

    def follow(self, name: str, deadline: float, poll_seconds: float, tell: Callable[[str], None]) -> None:
        """Return when the job has succeeded.

        Raises:
            JobError: it failed, or someone deleted it.
            TimeoutError: it took too long.
        """
        log = _Log(self, name, tell)
        for status in self._looks(name, log):
            if status.phase != "running":
                log.finish()
            if status.phase == "succeeded":
                return
            if status.phase == "failed":
                message = status.message.rstrip(".")
                raise JobError(f"The {self.kind.name} {self.namespace}/{name} failed: {message}.")
            if time.monotonic() > deadline:
                raise TimeoutError(f"it is still {status.message}")
            time.sleep(poll_seconds)

    def delete(self, name: str) -> None:
        """Delete the job with its pods, if it is there."""
        try:
            self.objects.delete_namespaced_custom_object(
                *self.place, name, propagation_policy="Foreground", _request_timeout=_REQUEST_SECONDS
            )
        except ApiException as error:
            if error.status != 404:
                raise

    def _looks(self, name: str, log: "_Log") -> Iterator[Status]:
        """Yield the status of the job at each look; a cluster that does not answer now and then is borne."""
        failed = 0
        while True:
            try:
                found = self._find(name)
                log.attend()
                failed = 0
            except (ApiException, HTTPError) as error:
                failed += 1
                if failed == _FAILED_LOOKS or _is_refusal(error):
                    raise
                yield Status("running", "out of reach")
                continue
            if found is None:
                raise JobError(f"The {self.kind.name} {self.namespace}/{name} was deleted by someone else.")
            yield self.kind.status(found)

    def _find(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self.objects.get_namespaced_custom_object(
                *self.place, name, _request_timeout=_REQUEST_SECONDS
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found


class _Log:
    """The log of a job's first pod, told while the job runs; a stream that broke off is taken up again."""

    def __init__(self, jobs: _Jobs, name: str, tell: Callable[[str], None]) -> None:
        self._jobs, self._pods, self._tell = jobs, jobs.kind.pods.format(name=name), tell
        self._told: tuple[str, str] = ("", "")
        self._last = ""
        self._thread: Thread | None = None

    def attend(self) -> None:
        """Begin to read the log of the newest pod that runs or has ended, unless that is being done."""
        if self._thread and self._thread.is_alive():
            return
        pods = self._jobs.core.list_namespaced_pod(
            self._jobs.namespace, label_selector=self._pods, _request_timeout=_REQUEST_SECONDS
        ).items
        begun = [pod for pod in pods if pod.status.phase in ("Running", "Succeeded", "Failed")]
        if not begun:
            return
        pod = max(begun, key=lambda pod: pod.metadata.creation_timestamp)
        told = (pod.metadata.uid, pod.status.phase)
        if told == self._told and pod.status.phase != "Running":
            return
        self._last = self._last if told[0] == self._told[0] else ""
        self._told = told
        self._thread = Thread(target=self._read, args=(pod.metadata.name,), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Read what is left of the log."""
        for _ in range(2):
            if self._thread:
                self._thread.join(_LOG_SECONDS)
            with suppress(ApiException, HTTPError):
                self.attend()

    def _read(self, pod: str) -> None:
        """Tell the lines that were not told yet; each has its time before it."""
        read = self._jobs.core.read_namespaced_pod_log
        kind, namespace = self._jobs.kind, self._jobs.namespace
        try:
            for line in watch.Watch().stream(read, pod, namespace, container=kind.container, timestamps=True):
                moment, _, words = line.partition(" ")
                if moment > self._last:
                    self._last = moment
                    self._tell(words)
        except (ApiException, HTTPError) as error:
            logger.warning("Cannot read the log of the pod %s/%s: %s.", namespace, pod, _reason(error))


def _connect() -> client.ApiClient:
    try:
        if _OWN_NAMESPACE.exists():
            config.load_incluster_config()
        else:
            config.load_kube_config()
    except ConfigException as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"There is no cluster to work on: {reason}. Run in a pod, or set KUBECONFIG."
        ) from None
    return client.ApiClient()


def _own_namespace() -> str:
    try:
        return _OWN_NAMESPACE.read_text().strip()
    except OSError:
        raise InputError("Outside a pod there is no namespace of one's own. Set the namespace.") from None


@contextmanager
def _answering(kind: Kind, name: str) -> Iterator[None]:
    """Turn what goes wrong between here and the cluster into one sentence about the job."""
    try:
        yield
    except ApiException as error:
        remedy = _REMEDIES.get(error.status, "Try again")
        raise JobError(
            f"Kubernetes refused a call for the {kind.name} {name}: {_reason(error)}. {remedy}."
        ) from None
    except HTTPError as error:
        raise JobError(
            f"Kubernetes does not answer about the {kind.name} {name}: {_reason(error)}. Check the cluster; "
            "the job goes on, and the next try takes it up."
        ) from None
    except TimeoutError as error:
        raise JobError(
            f"The {kind.name} {name} took too long, {error}: it was deleted. "
            "Raise timeout_seconds, or see what the cluster lacks."
        ) from None


def _is_refusal(error: ApiException | HTTPError) -> bool:
    """Tell what will be the same next time from a server that is busy or down."""
    return isinstance(error, ApiException) and error.status < 500 and error.status != 429


def _reason(error: ApiException | HTTPError) -> str:
    """Return what went wrong, on one line."""
    if not isinstance(error, ApiException):
        return type(getattr(error, "reason", None) or error).__name__
    try:
        words = str(json.loads(error.body)["message"]).split()
    except (TypeError, ValueError, KeyError):
        words = []
    return ", ".join(filter(None, [f"{error.status} {error.reason}", " ".join(words).rstrip(".")]))
