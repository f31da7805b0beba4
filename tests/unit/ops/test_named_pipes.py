"""No process of ours waits for a named pipe, or reads a file without end, that somebody put in the place of its own.

A process that opens a named pipe waits until somebody writes to it. A supervisor that waits starts no worker any more,
and a worker that waits answers nobody. Odd content is refused in one line, too: a bracket in a bracket without end
raises another error than JSON that is merely wrong, and ended processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.lmdb_file import missing_bytes
from paywarden.features.stores.register_file import FileRegister
from paywarden.features.tables.mapping import read_mapping
from paywarden.models.bundle.bundle import load_bundle, sha256_of
from paywarden.models.bundle.explanations import read_trees
from paywarden.models.bundle.predictor import NativePredictor
from paywarden.models.bundle.signature import BundleSettings, TrustedKeys, sign_bundle
from paywarden.models.bundle.stored_arrays import UNREADABLE, read_arrays
from paywarden.models.policy.lists import read_lists
from paywarden.models.policy.mapped_list import MappedList
from paywarden.models.policy.prepared_policy import load_policy
from paywarden.models.registry.artefacts import check_files
from paywarden.models.registry.model_log import LogFile
from paywarden.models.registry.people import RegistryPeople, read_signing_key
from paywarden.ops.capacity.coefficients import _figures_in
from paywarden.ops.commands.run.load import _token
from paywarden.ops.console.audit_log import AuditLog
from paywarden.ops.console.people import People as ConsolePeople
from paywarden.ops.console.webhooks import read_key
from paywarden.ops.gateway.credentials import _certificates, _check_keys
from paywarden.ops.gateway.description import read_description
from paywarden.ops.gateway.host_tokens import read_secrets
from paywarden.schemas.durability import write_synced
from paywarden.schemas.errors import PaywardenError
from paywarden.schemas.key_files import read_hex_key
from paywarden.schemas.private_files import open_private
from paywarden.schemas.settings import read_source
from paywarden.scoring.metrics import shared_metrics
from paywarden.scoring.net.tls import Tls, TlsSettings
from paywarden.scoring.net.tokens import Tokens
from paywarden.scoring.server.deployment.deployment_file import read_deployment
from paywarden.scoring.server.deployment.releases import read_orders
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import FILE_NAME, MirrorSettings
from paywarden.scoring.state.outbox import Cursor, OutboxReader, OutboxSettings, OutboxWriter
from paywarden.streams.archive.files import locked
from paywarden.streams.companion.cursors import HostIdentity
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.companion.set_aside_entries import RECORD, SetAsideEntries
from paywarden.streams.maintenance.backup import read_backup
from tests.patience import PATIENCE_S
from tests.worlds.small import small_world

Read = Callable[[Path], object]


def _prepared(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name)).parent


def _outbox(path: Path) -> OutboxSettings:
    """An outbox whose only segment, whose cursor and whose host's name are pipes."""
    folder = path.parent / "outbox" / "w"
    folder.mkdir(parents=True)
    for name in (f"{0:020d}.log", "cursor"):
        os.mkfifo(folder / name)
    path.rename(folder.parent / "host")
    return OutboxSettings(directory=str(folder.parent))


def _mirror(path: Path) -> MirrorSettings:
    (path.parent / "mirror").mkdir(mode=0o700)
    path.rename(path.parent / "mirror" / FILE_NAME)
    return MirrorSettings(path=str(path.parent / "mirror"), size_mb=16)


def _bundle(path: Path, name: str) -> Path:
    bundle = small_world.copied_bundle(path.parent)
    place = next(found for found in sorted(bundle.rglob(name)) if found.is_file())
    place.unlink()
    path.rename(place)
    return bundle


def _signed(path: Path) -> object:
    bundle = small_world.copied_bundle(path.parent)
    path.rename(bundle / "signature.json")
    return TrustedKeys({}).require(bundle)


def _archive(path: Path) -> None:
    with locked(_prepared(path, ".lock").parent, path.parent.name):
        pass


def _set_aside(path: Path) -> object:
    folder = path.parent / "w" / "set-aside"
    folder.mkdir(mode=0o700, parents=True)
    path.rename(folder / f"{0:020d}-{9:020d}.new")
    return SetAsideEntries(OutboxSettings(directory=str(path.parent)), "w").put(0, 9, RECORD, b"bytes")


def _nothing() -> object:
    raise PaywardenError("it holds no key")


DIGEST = "0" * 64
REFUSALS = (PaywardenError, OSError, click.ClickException)
READERS: dict[str, Read] = {
    "the configuration": lambda path: read_source(str(path)),
    "rates": lambda path: load_rates(str(path)),
    "a policy's list": lambda path: read_lists({"cards": [f"@{path}"]}),
    "a long list": MappedList,
    "a prepared policy": lambda path: load_policy(_prepared(path, "policy.json"), CATALOGUE),
    "a bundle's manifest": lambda path: load_bundle(_bundle(path, "manifest.json"), catalogue_digest=DIGEST),
    "a bundle's model": lambda path: load_bundle(_bundle(path, "model.txt"), catalogue_digest=DIGEST),
    "a bundle's golden vectors": lambda path: load_bundle(_bundle(path, "golden.npz"), catalogue_digest=DIGEST),
    "a bundle's signature": _signed,
    "a model's text": lambda path: read_trees(path, 3),
    "a native library": lambda path: NativePredictor(path, 3),
    "arrays": read_arrays,
    "a file with a checksum": sha256_of,
    "a file that was registered": lambda path: check_files(path.parent, {path.name: DIGEST}),
    "a signing key": lambda path: sign_bundle(small_world.copied_bundle(path.parent), path),
    "a trusted key": lambda path: TrustedKeys.read(BundleSettings(trusted_keys=(str(path),))),
    "a person's key": read_signing_key,
    "people": RegistryPeople.read,
    "people of the console": ConsolePeople.read,
    "a webhook's key": lambda path: read_key(str(path)),
    "a key of hex digits": lambda path: read_hex_key("key", str(path)) or _nothing(),
    "the registry's log": lambda path: LogFile(path).read(),
    "an audit log": lambda path: AuditLog(path, Ed25519PrivateKey.generate()),
    "a deployment file": read_deployment,
    "orders": read_orders,
    "tokens": lambda path: Tokens(str(path)),
    "a certificate": lambda path: Tls(TlsSettings(certificate=str(path), key=str(path))),
    "counts of a worker": shared_metrics._read_file,
    "a register of profile sets": lambda path: FileRegister(_prepared(path, "live.json")).read(),
    "a database of LMDB": missing_bytes,
    "a mirror that is read": lambda path: MirrorReader(_mirror(path), item_max=8, profile_bytes_max=4096),
    "a mirror that is written": lambda path: MirrorWriter(_mirror(path)),
    "an outbox that is read": lambda path: OutboxReader(_outbox(path), "w").read(0, 5),
    "an outbox that is written": lambda path: OutboxWriter(_outbox(path), "w"),
    "a cursor": lambda path: Cursor(_outbox(path), "w").load(),
    "a host's name": lambda path: HostIdentity(Path(_outbox(path).directory)),
    "a backup's manifest": lambda path: read_backup(_prepared(path, "backup.json")),
    "the lock of a register of profile sets": lambda path: FileRegister(_prepared(path, "live.lock")).replace(b"", 0),
    "the lock of an archive": _archive,
    "what is set aside": _set_aside,
    "a bearer token": lambda path: _token(str(path)),
    "a mapping of a table": read_mapping,
    "a gateway's description": read_description,
    "a gateway's secret": lambda path: read_secrets(str(path)),
    "keys of a gateway": lambda path: _check_keys("jwks", str(path)),
    "certificates of a gateway": lambda path: _certificates("ca", str(path)),
    "figures of a benchmark": _figures_in,
    "a private file that is written": lambda path: open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
}


@pytest.fixture(scope="module")
def bundle() -> None:
    """To train it takes longer than anything below."""
    small_world.trained_bundle()


@pytest.fixture
def alarm(bundle: None) -> Iterator[None]:  # noqa: ARG001
    """End a wait in the kernel."""

    def waited(*_: Any) -> None:
        raise AssertionError("it waits for the named pipe")

    before = signal.signal(signal.SIGALRM, waited)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S / 2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", READERS)
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / "own" / "file"
    path.parent.mkdir(mode=0o700)
    os.mkfifo(path, 0o600)
    with pytest.raises(REFUSALS) as refused:
        READERS[name](path)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("name", READERS)
def test_a_link_that_leads_back_to_itself_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """`Path.resolve` raises RuntimeError for it: the log said that a process ended with 70, and not why."""
    loop, path = tmp_path / "loop", tmp_path / "own" / "file"
    loop.symlink_to(loop)
    path.parent.mkdir(mode=0o700)
    path.symlink_to(loop)
    with pytest.raises(REFUSALS) as refused:
        READERS[name](path)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("alarm")
def test_a_named_pipe_where_a_file_is_prepared_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.new", 0o600)
    write_synced(tmp_path / "f", b"whole")
    assert (tmp_path / "f").read_bytes() == b"whole"


HUGE: dict[str, Read] = {
    name: READERS[name]
    for name in (
        "the configuration",
        "rates",
        "a policy's list",
        "people",
        "people of the console",
        "a person's key",
        "the registry's log",
        "a deployment file",
        "orders",
        "tokens",
        "counts of a worker",
        "a webhook's key",
        "a trusted key",
        "a key of hex digits",
    )
}


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", HUGE)
def test_a_file_larger_than_the_memory_is_refused_unread(tmp_path: Path, name: str) -> None:
    path = tmp_path / "own" / "file"
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    os.truncate(path, 1 << 40)
    with pytest.raises(REFUSALS):
        HUGE[name](path)


HOSTILE: dict[str, bytes] = {
    "brackets without end": b"[" * 60_000,
    "objects without end": b'{"a":' * 10_000,
    "brackets after a key": b"a = " + b"[" * 30_000,
    "no UTF-8": b"\xff\xfe\x80abc",
    "nothing": b"",
    "half of it": b'{"version": 1, "active": {"bundle": "/x',
    "zero bytes": bytes(5_000),
    "digits without end": b"9" * 50_000,
    "another value": b"[]",
    "no path": b'{"version": 1, "active": {"bundle": "/x\\u0000y"}}',
    "no bytes": b'{"version": 1, "active": {"bundle": "/x\\ud800y"}}',
}


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("name", READERS)
def test_whatever_a_file_holds_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    expected = UNREADABLE if name == "arrays" else REFUSALS
    for number, (what, content) in enumerate(HOSTILE.items()):
        path = tmp_path / str(number) / "own" / "file"
        path.parent.mkdir(mode=0o700, parents=True)
        path.touch(mode=0o600)
        path.write_bytes(content)
        told = ""
        try:
            # Some of it is a value of some of them.
            READERS[name](path)
        except expected as refused:
            told = str(refused)
        assert "\n" not in told, what
