"""Files by digest, in a folder or an object store: whole, and as they were registered."""

from __future__ import annotations

import builtins
import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from paywarden.models.bundle.signature import fingerprint
from paywarden.models.registry import entries as kinds
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
from paywarden.models.registry.model_log import LATE_BYTES, LogFile
from paywarden.models.registry.registry import BundleFacts, PolicyFacts, Registry, Signer
from paywarden.models.registry.registry_rules import Rules
from paywarden.schemas.errors import BundleRefused, Misconfigured, RegistryRefused
from tests.worlds.rollout.registry import CATALOGUE, START_MS, Writer, digest, key_of, people_of
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
    # Nobody else may change a library, for any umask of the person who registered it.
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


@pytest.mark.parametrize("make", [in_a_folder, in_memory])
def test_files_that_nobody_registered_are_replaced(make: Callable[[Path], ArtefactStore], tmp_path: Path) -> None:
    """A command is killed before the entry; the next one compiles again: the entry names its library."""
    store = make(tmp_path)
    store.put(BUNDLES, NAME, {**FILES, "native/x86_64/model.so": b"of the first attempt", "native/x86_64/odd": b""})
    store.put(BUNDLES, NAME, FILES)
    folder = store.folder(BUNDLES, NAME, CHECKSUMS)
    assert (folder / "native/x86_64/model.so").read_bytes() == b"code"
    assert [path.name for path in folder.parent.iterdir()] == [NAME]


@pytest.mark.parametrize("make", [in_a_folder, in_memory])
def test_a_bundle_with_another_library_than_the_registered_one_is_refused(
    make: Callable[[Path], ArtefactStore], tmp_path: Path
) -> None:
    """The digest leaves out the library: whoever registered first decided what all hosts load, without a word."""
    store = make(tmp_path)
    registry = Registry(LogFile(tmp_path / "log.jsonl"), people_of(), Rules(), store)

    def register(library: bytes, policy: str, by: str = "anna", model: str = "m-1") -> None:
        files = {"manifest.json": b"{}", "native/x86_64/model.so": library}
        facts = BundleFacts(NAME, model, CATALOGUE, "", files)
        policies = PolicyFacts(digest(policy), policy)
        registry.register(Signer(by, key_of(by)), facts, policies, why="a test", now_ms=START_MS)

    register(b"first", "p-1")
    key = fingerprint(key_of("anna").public_key())
    with pytest.raises(
        RegistryRefused,
        match=rf"is registered already, by anna, with another native/x86_64/model.so \({sha256(b'first').hexdigest()}, "
        rf"yours is {sha256(b'again').hexdigest()}\): .* revoke the key {key} if they must not be used",
    ):
        register(b"again", "p-2", "ben")
    with pytest.raises(RegistryRefused, match=r"by anna, with another model_version \(m-1, yours is m-2\)"):
        register(b"first", "p-2", "ben", "m-2")
    registered = registry.state().bundles[NAME].files
    assert (store.folder(BUNDLES, NAME, registered) / "native/x86_64/model.so").read_bytes() == b"first"
    # Registering the same bytes again repairs a damaged file.
    if isinstance(store, ObjectStore):
        store.files.pipe_file(f"{store.root}/{BUNDLES}/{NAME}/manifest.json", b"")
        shutil.rmtree(store.cache)
    else:
        (tmp_path / "registry" / BUNDLES / NAME / "manifest.json").write_bytes(b"")
    with pytest.raises(RegistryRefused, match=r"manifest.json was changed"):
        store.folder(BUNDLES, NAME, registered)
    register(b"first", "p-3", "ben")
    assert store.folder(BUNDLES, NAME, registered).is_dir()
    # A person who registered first, with files that nobody may use, cannot keep the bundle from others.
    (proposal,) = [one.digest for one in registry.state().proposals.values() if one.by == "ben"]
    registry.note(Signer("dora", key_of("dora")), kinds.KEY_REVOKED, {"revoked": key}, why="a test", now_ms=START_MS)
    assert [*registry.state().proposals] == [proposal], "what another person uses stays"
    assert NAME in registry.state().bundles


@pytest.mark.parametrize("make", [in_a_folder, in_memory])
def test_a_revocation_frees_a_bundle_for_the_files_of_others(
    make: Callable[[Path], ArtefactStore], tmp_path: Path
) -> None:
    store = make(tmp_path)
    registry = Registry(LogFile(tmp_path / "log.jsonl"), people_of(), Rules(), store)

    def register(library: bytes, by: str) -> None:
        facts = BundleFacts(NAME, "m-1", CATALOGUE, "", {"manifest.json": b"{}", "native/x86_64/model.so": library})
        registry.register(Signer(by, key_of(by)), facts, PolicyFacts(digest("p"), "p"), why="a test", now_ms=START_MS)

    register(b"hostile", "anna")
    what = {"revoked": fingerprint(key_of("anna").public_key())}
    registry.note(Signer("dora", key_of("dora")), kinds.KEY_REVOKED, what, why="a test", now_ms=START_MS)
    assert (registry.state().proposals, registry.state().bundles, registry.state().policies) == ({}, {}, {})
    register(b"good", "ben")
    state = registry.state()
    assert state.bundles[NAME].by == "ben"
    files = state.bundles[NAME].files
    assert (store.folder(BUNDLES, NAME, files) / "native/x86_64/model.so").read_bytes() == b"good"
    (proposal,) = state.proposals.values()
    assert state.libraries(proposal.version) == {"native/x86_64/model.so": sha256(b"good").hexdigest()}


def test_a_full_log_still_takes_a_rollback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer one is read by nobody: the last entry that fitted would have been the last of all."""
    registry = Registry(LogFile(tmp_path / "log.jsonl"), people_of(), Rules(), FolderStore(tmp_path))
    anna = Signer("anna", key_of("anna"))
    writer = Writer()
    for name in ("one", "two"):
        writer.add(kinds.PROMOTED, "anna", proposal=writer.proposal(name).digest)
    registry.log.append(lambda _: writer.log.entries)
    monkeypatch.setattr("paywarden.models.registry.model_log.LOG_BYTES_MAX", LATE_BYTES + len(writer.content) - 1)
    with pytest.raises(RegistryRefused, match=r"clock set by anna is refused: the log has \d+ bytes and is full"):
        registry.note(anna, kinds.CLOCK_SET, {}, why="a test", now_ms=writer.now_ms)
    what = {"revoked": fingerprint(key_of("ben").public_key())}
    registry.note(anna, kinds.KEY_REVOKED, what, why="a test", now_ms=writer.now_ms)
    registry.roll_back(anna, why="a test", now_ms=writer.now_ms)
    champion = registry.state().champion
    assert champion is not None
    assert champion.bundle == digest("bundle one")


def test_a_damaged_copy_of_a_store_says_how_it_is_mended(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    store = in_memory(tmp_path)
    store.put(BUNDLES, NAME, FILES)
    assert not store.is_here(BUNDLES, NAME)
    copy = store.folder(BUNDLES, NAME, CHECKSUMS)
    assert store.is_here(BUNDLES, NAME)
    (copy / "manifest.json").write_bytes(b"")
    with pytest.raises(RegistryRefused, match=r"was changed .*this is a copy: remove .*, and it is fetched again"):
        store.folder(BUNDLES, NAME, CHECKSUMS)
    shutil.rmtree(copy)
    assert store.folder(BUNDLES, NAME, CHECKSUMS) == copy


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

    class Odd(Broken):
        """Its client has errors that are no OSError, with a page of HTML in them."""

        def cat_file(self, *_: Any) -> bytes:
            raise RuntimeError("502\n<html>" + 500 * "x\n")

    with pytest.raises(Misconfigured, match=r"^cannot read bucket/bundles/\w+: 502 <html>x x x") as refused:
        ObjectStore(Odd(), "bucket", tmp_path).folder(BUNDLES, NAME, CHECKSUMS)
    assert len(str(refused.value)) < 450
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
