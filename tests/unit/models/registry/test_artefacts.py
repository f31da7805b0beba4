"""Files by digest, in a folder or an object store: whole, and as they were registered."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paywarden.models.registry.artefacts import (
    BUNDLES,
    ArtefactStore,
    FolderStore,
    ObjectStore,
    bundle_files,
    check_files,
    checksums_of,
    open_store,
    processors_of,
)
from paywarden.schemas.errors import BundleRefused, Misconfigured, RegistryRefused
from tests.worlds.rollout.registry import digest
from tests.worlds.small import small_world

FILES = {"manifest.json": b"{}", "native/x86_64/model.so": b"code", "native/x86_64/build.json": b"{}"}
CHECKSUMS = checksums_of(FILES)
NAME = digest("bundle")


def in_a_folder(tmp_path: Path) -> ArtefactStore:
    return FolderStore(tmp_path / "registry")


def in_memory(tmp_path: Path) -> ArtefactStore:
    pytest.importorskip("fsspec")
    store = open_store(f"memory://{tmp_path}/models", tmp_path / "cache")
    assert isinstance(store, ObjectStore)
    return store


@pytest.mark.parametrize("make", [in_a_folder, in_memory])
def test_a_store_gives_back_what_was_put_and_refuses_anything_else(
    make: Callable[[Path], ArtefactStore], tmp_path: Path
) -> None:
    store = make(tmp_path)
    with pytest.raises(RegistryRefused):
        store.folder(BUNDLES, NAME, CHECKSUMS)
    store.put(BUNDLES, NAME, FILES)
    store.put(BUNDLES, NAME, FILES)
    folder = store.folder(BUNDLES, NAME, CHECKSUMS)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == FILES
    # Nobody else may change a library, whatever the umask of whoever registered it.
    assert all(path.stat().st_mode & 0o022 == 0 for path in (folder, *folder.rglob("*")))
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".new-")]
    with pytest.raises(RegistryRefused, match=r"model.so was changed after it was registered"):
        store.folder(BUNDLES, NAME, {**CHECKSUMS, "native/x86_64/model.so": digest("other")})
    (folder / "native" / "arm").mkdir()
    (folder / "native" / "arm" / "model.so").write_bytes(b"code")
    with pytest.raises(RegistryRefused, match="was added after the bundle was registered"):
        check_files(folder, CHECKSUMS)


def test_what_an_object_store_gives_is_checked_before_it_reaches_the_host(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    store = in_memory(tmp_path)
    assert isinstance(store, ObjectStore)
    store.put(BUNDLES, NAME, FILES)
    store.files.pipe_file(f"{store.root}/{BUNDLES}/{NAME}/native/x86_64/model.so", b"other code")
    with pytest.raises(RegistryRefused, match=r"native/x86_64/model.so was changed after it was registered"):
        store.folder(BUNDLES, NAME, CHECKSUMS)
    assert not store.cache.exists()


class Broken:
    """A file system that does not answer."""

    def makedirs(self, *_: Any, **__: Any) -> None:
        raise TimeoutError("no answer")

    def cat_file(self, *_: Any) -> bytes:
        raise PermissionError(13, "Permission denied")


def test_a_store_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    store = ObjectStore(Broken(), "bucket", tmp_path)
    with pytest.raises(Misconfigured, match=r"cannot write bucket/bundles/.*: no answer"):
        store.put(BUNDLES, NAME, FILES)
    with pytest.raises(Misconfigured, match=r"cannot read bucket/bundles/.*: Permission denied"):
        store.folder(BUNDLES, NAME, CHECKSUMS)
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match=r"cannot write .*Not a directory"):
        FolderStore(tmp_path / "file").put(BUNDLES, NAME, FILES)


def test_a_url_without_the_extra_or_of_an_unknown_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(Misconfigured, match=r"\[models\] folder: cannot open nothing://x"):
        open_store("nothing://x", tmp_path)
    usual = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("fsspec"):
            raise ImportError(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Misconfigured, match=r"needs the extra `registry`: pip install 'paywarden\[registry\]'"):
        open_store("s3://bucket/models", tmp_path)


def test_a_put_that_fails_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Misconfigured, match="No space left on device"):
        FolderStore(tmp_path).put(BUNDLES, NAME, FILES)
    assert list((tmp_path / BUNDLES).iterdir()) == []


def test_the_files_of_a_bundle_are_all_that_its_loader_reads() -> None:
    files = bundle_files(small_world.cascade_bundle())
    assert {
        "manifest.json",
        "model.txt",
        "golden.npz",
        "first.txt",
        "first_golden.npz",
        "reference.npz",
    } <= files.keys()
    machine = processors_of(files)
    natives = {name for name in files if name.startswith("native/")}
    # The libraries of both models of the cascade, with their build.json, or none without a compiler.
    assert len(natives) == 4 * len(machine)


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    bundle = small_world.copied_bundle(tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["files"]["../secret"] = digest("secret")
    (bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleRefused, match=r"names the file '../secret'"):
        bundle_files(bundle)
