"""A release store: where a release is put once, and several Tritons take it from.

    <store>/releases/000007/ranking/model.onnx ...    the files of release 7
    <store>/releases/000007/manifest.json             written last: before it the release is not there
    <store>/serving.json                              {"release": 7}: the release that shall serve

The store is a folder or a prefix in S3-compatible object storage; the same code serves both. Not for two
pushes of one number at the same time: when they differ they mix, which `pull` finds out by the checksums.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from watchrank.errors import DeploymentError, InputError
from watchrank.object_storage import CHUNK, ObjectStore
from watchrank.releases import LAST, MANIFEST, check_manifest, checksum, read_manifest, verify
from watchrank.storage import atomic_path, locked, write_json

POINTER = "serving.json"

_NUMBER = re.compile(r"\d{6}")
_REPAIR = "remove it from the store and push the release again"


class ReleaseStore:
    """The releases of a store, and the pointer to the one that shall serve.

    Every method raises DeploymentError when the store cannot be used.
    """

    def __init__(self, url: str) -> None:
        """Open a store; a folder that is not there is made by the first push.

        Args:
            url: path of a folder, or s3://bucket/prefix (see `watchrank.object_storage`); the bucket must
                exist.

        Raises:
            InputError: the URL is of another kind, or names no bucket.
        """
        self.url = url
        self._objects = ObjectStore(url, "release store", DeploymentError)

    def push(self, release: Path) -> int:
        """Put a release into the store; return its number. One that is there already is left alone.

        Killed half-way, it leaves nothing that can be seen; the next push completes it.

        Raises:
            InputError: `release` is no release.
            DeploymentError: it is damaged, or the store holds another release of its number.
        """
        manifest = verify(release)
        number: int = manifest["release"]
        if number in self.numbers():
            if self.manifest(number) != manifest:
                raise DeploymentError(
                    f"{self.url} holds another release {number}, and a release is never replaced; "
                    "export this one under a new number or give another store."
                )
            return number
        for name in manifest["files"]:
            with (release / name).open("rb") as source:
                self._objects.write(_path(number, name), source)
        self._put(_path(number, MANIFEST), manifest)
        return number

    def pull(self, number: int, releases: Path) -> Path:
        """Fetch a release into a folder of releases, checked before it appears there; return its folder.

        One that is there already and whole is not fetched again.

        Raises:
            InputError: the store holds no such release.
            DeploymentError: the release is damaged in the store, or another one of its number is here.
        """
        manifest = self.manifest(number)
        target = releases / f"{number:06d}"
        with locked(releases):
            if _is_whole(target):
                if read_manifest(target) != manifest:
                    raise DeploymentError(
                        f"{target} is another release than {number} of {self.url}; take another folder."
                    )
            else:
                with atomic_path(target) as fresh:
                    for name, expected in manifest["files"].items():
                        self._fetch(number, name, expected, fresh / name)
                    write_json(fresh / MANIFEST, manifest)
        return target

    def numbers(self) -> list[int]:
        """Return the numbers of the releases that are there as a whole, in order."""
        folders = self._objects.holding(MANIFEST, "releases")
        return [int(name) for name in folders if _NUMBER.fullmatch(name)]

    def manifest(self, number: int) -> dict[str, Any]:
        """Return the manifest of a release.

        Raises:
            InputError: the store holds no such release.
            DeploymentError: the manifest is damaged, or names files outside of its release.
        """
        name = _path(number, MANIFEST)
        manifest = self._get(name)
        if manifest is None:
            raise InputError(f"{self.url} holds no release {number}. There are: {self.numbers() or 'none'}.")
        try:
            check_manifest(manifest)
            if manifest["release"] != number:
                raise ValueError(f"it is that of {manifest['release']}")
        except ValueError as error:
            wrong = f"{self.url}/{name} is no manifest of release {number}: {error}"
            raise DeploymentError(f"{wrong}; {_REPAIR}.") from None
        return manifest

    def serving(self) -> int | None:
        """Return the number of the release that shall serve, or None when none was named yet."""
        pointer = self._get(POINTER)
        if pointer is None:
            return None
        number = pointer.get("release")
        if type(number) is not int or not 1 <= number <= LAST:
            raise DeploymentError(f"{self.url}/{POINTER} names no release; name one with `watchrank push`.")
        return number

    def serve(self, number: int | None) -> None:
        """Name the release that shall serve; those who follow the store take it up. None names none again.

        Raises:
            InputError: the store holds no such release.
            DeploymentError: its manifest is damaged.
        """
        if number is None:
            self._objects.remove(POINTER)
            return
        self.manifest(number)
        self._put(POINTER, {"release": number})

    def release_before(self) -> int:
        """Return the number of the release before the one that shall serve, to roll back to.

        Raises:
            InputError: none shall serve, or nothing older is in the store.
        """
        current = self.serving()
        older = [number for number in self.numbers() if current and number < current]
        if not older:
            raise InputError(
                f"{self.url} holds no release before {current or 'the first'}; "
                "name one with `watchrank push --release`."
            )
        return older[-1]

    # -- Objects ---------------------------------------------------------------------------------------

    def _get(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object, or None when it is not there."""
        content = self._objects.read(name)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DeploymentError(f"{self.url}/{name} is damaged, it holds no JSON object; {_REPAIR}.")
        return value

    def _put(self, name: str, value: dict[str, Any]) -> None:
        self._objects.replace(name, json.dumps(value, indent=2, sort_keys=True).encode())

    def _fetch(self, number: int, name: str, expected: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._objects.open(_path(number, name)) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
            right = checksum(target) == expected
        except FileNotFoundError:
            right = False
        if not right:
            raise DeploymentError(
                f"Release {number} in {self.url} is damaged: {name} is missing or not the file of its "
                f"manifest; {_REPAIR}."
            )


def _path(number: int, name: str) -> str:
    return f"releases/{number:06d}/{name}"


def _is_whole(release: Path) -> bool:
    try:
        verify(release)
    except (InputError, DeploymentError):
        return False
    return True


def taken_numbers(url: str | None) -> list[int]:
    """Return the numbers that a new release must not have, when there is a store that it will go to."""
    return ReleaseStore(url).numbers() if url else []
