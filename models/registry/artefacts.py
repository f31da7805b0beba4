"""The files of bundles and policies, by digest, in a folder or in an object store.

    FOLDER/bundles/DIGEST/manifest.json, model.txt, …
    FOLDER/policies/DIGEST/policy.toml

An entry of the log has the sha256 of each file, native libraries too. `folder` checks them all before it returns:
nobody can change registered files. Files are put under another name first, and appear whole or not at all.

An object store is anything with fsspec's interface (s3://, gs://, abfs://, …). Its files are copied to a folder of
this host before use.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from paywarden.models.bundle.signature import BUILD, MANIFEST, SIGNATURE
from paywarden.schemas.durability import sync_folder
from paywarden.schemas.errors import BundleRefused, Misconfigured, RegistryRefused
from paywarden.schemas.file_state import read_regular

BUNDLES: Final = "bundles"
POLICIES: Final = "policies"
POLICY_FILE: Final = "policy.toml"
NATIVE: Final = "native"

# Others may read them, and nobody may change them: a library that others can change is not loaded.
_FOLDER_MODE, _FILE_MODE = 0o755, 0o644
_REASON_MAX = 300


class ArtefactStore(Protocol):
    """Keeps the files of bundles and policies."""

    def put(self, kind: str, digest: str, files: Mapping[str, bytes]) -> None:
        """Keep files under a digest, whole or not at all. They replace others that are there. Raises Misconfigured.

        The caller knows that no entry names others: a bundle's digest leaves out its native libraries.
        """

    def is_here(self, kind: str, digest: str, /) -> bool:
        """Returns whether `folder` asks nobody outside this host."""

    def folder(self, kind: str, digest: str, checksums: Mapping[str, str]) -> Path:
        """Returns a folder of this host with the files. Raises RegistryRefused if one lacks or has another checksum."""


@dataclass(frozen=True)
class FolderStore:
    """Keeps files below a folder of this host, or one that hosts share."""

    root: Path

    def put(self, kind: str, digest: str, files: Mapping[str, bytes]) -> None:
        """See ArtefactStore."""
        target = self.root / kind / digest
        try:
            check_files(target, checksums_of(files))
        except RegistryRefused:
            # Nothing is there, or a caller was stopped before it registered these files, or they have changed.
            _write_folder(target, files)

    def is_here(self, _kind: str, _digest: str, /) -> bool:
        """See ArtefactStore."""
        return True

    def folder(self, kind: str, digest: str, checksums: Mapping[str, str]) -> Path:
        """See ArtefactStore."""
        target = self.root / kind / digest
        check_files(target, checksums)
        return target


@dataclass(frozen=True)
class ObjectStore:
    """Keeps files in an object store. `files`: a file system of fsspec; `root`: a path in it; `cache`: of this host."""

    files: Any
    root: str
    cache: Path

    def put(self, kind: str, digest: str, files: Mapping[str, bytes]) -> None:
        """See ArtefactStore. An object store has no renaming: files that it holds in part are written again."""
        place = f"{self.root}/{kind}/{digest}"
        with _one_line(f"cannot write {place}"):
            for name, content in files.items():
                self.files.makedirs(f"{place}/{name}".rpartition("/")[0], exist_ok=True)
                self.files.pipe_file(f"{place}/{name}", content)

    def is_here(self, kind: str, digest: str, /) -> bool:
        """See ArtefactStore."""
        return (self.cache / kind / digest).exists()

    def folder(self, kind: str, digest: str, checksums: Mapping[str, str]) -> Path:
        """See ArtefactStore. Files that are in the cache are not fetched again."""
        target = self.cache / kind / digest
        if not target.exists():
            place = f"{self.root}/{kind}/{digest}"
            with _one_line(f"cannot read {place}"):
                files = {name: bytes(self.files.cat_file(f"{place}/{name}")) for name in checksums}
            for name, content in files.items():
                if hashlib.sha256(content).hexdigest() != checksums[name]:
                    raise RegistryRefused(f"{place}: {name} was changed after it was registered")
            _write_folder(target, files)
        try:
            check_files(target, checksums)
        except RegistryRefused as error:
            raise RegistryRefused(f"{error}; this is a copy: remove {target}, and it is fetched again") from error
        return target


def open_store(place: str, cache: Path) -> ArtefactStore:
    """Returns the store at a folder or a URL. Raises Misconfigured for a URL that nothing can open."""
    if "://" not in place:
        return FolderStore(Path(place))
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise Misconfigured(
            f"[models] folder: {place} needs the extra `registry`: pip install 'paywarden[registry]'"
        ) from error
    with _one_line(f"[models] folder: cannot open {place}"):
        files, root = url_to_fs(place)
    return ObjectStore(files, str(root).rstrip("/"), cache)


def bundle_files(bundle: Path) -> dict[str, bytes]:
    """Returns the files of a bundle by path: those of its manifest, its native libraries, and its signature.

    Raises BundleRefused if the manifest cannot be read, Misconfigured if another file cannot.
    """
    # With it comes the machine code of models, which a rollback has no time to wait for.
    from paywarden.models.bundle.bundle import read_manifest

    manifest = read_manifest(bundle)
    parts = [name for part in manifest.parts for name in (part.model_text, part.golden)]
    names = [MANIFEST, *dict.fromkeys([*parts, *sorted(manifest.files)])]
    for name in names:
        # A manifest comes from somebody else: it must not name files elsewhere.
        if Path(name).name != name:
            raise BundleRefused(f"bundle {bundle}: {MANIFEST} names the file {name!r}; wanted files beside it")
    for build in sorted(bundle.glob(f"{NATIVE}/**/{BUILD}")):
        names += [path.relative_to(bundle).as_posix() for path in (build, build.parent / "model.so")]
    if (bundle / SIGNATURE).exists():
        names.append(SIGNATURE)
    try:
        return {name: read_regular(bundle / name, None) for name in names}
    except OSError as error:
        raise Misconfigured(f"cannot read {error.filename}: {error.strerror}") from error


def checksums_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the sha256 of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def check_files(folder: Path, checksums: Mapping[str, str]) -> None:
    """Raise RegistryRefused if a file below a folder is missing or differs from the registered one."""
    for name, checksum in checksums.items():
        try:
            content = read_regular(folder / name, None)
        except OSError as error:
            raise RegistryRefused(f"{folder}: {name} was registered and cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != checksum:
            raise RegistryRefused(f"{folder}: {name} was changed after it was registered")
    for path in sorted(folder.glob(f"{NATIVE}/**/*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in checksums:
            raise RegistryRefused(f"{path} was added after the bundle was registered: it is code, remove it")


def processors_of(names: Iterable[str]) -> list[str]:
    """Returns the processors for which there is a native library among the files of a bundle."""
    return sorted({name.split("/")[1] for name in names if name.startswith(f"{NATIVE}/")})


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Says in one line what a file system of fsspec could not do. Raises Misconfigured, RegistryRefused."""
    try:
        yield
    except FileNotFoundError as error:
        raise RegistryRefused(f"{what}: a file is missing that was registered") from error
    except Exception as error:
        # Each file system has errors of its own, and some are no OSError.
        raise Misconfigured(f"{what}: {_reason(error)}") from error


def _write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder in its place, whole. Raises Misconfigured."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _put_folder(target, files)
    except OSError as error:
        raise Misconfigured(f"cannot write {target}: {error.strerror}") from error


def _put_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder beside its place and rename it. If another process was faster with these files, its own stay."""
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        for name, content in files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            path.chmod(_FILE_MODE)
        for folder in (new, *(path for path in new.rglob("*") if path.is_dir())):
            folder.chmod(_FOLDER_MODE)
            sync_folder(folder)
        try:
            new.rename(target)
        except OSError:
            _replace_folder(target, new, files)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace_folder(target: Path, new: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder in the place of one that has not these files."""
    try:
        check_files(target, checksums_of(files))
    except RegistryRefused:
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
        try:
            target.rename(old)
            new.rename(target)
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    # One line, and no page of a server that is out of order.
    return " ".join(text.split())[:_REASON_MAX]
