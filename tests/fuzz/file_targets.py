"""Targets for files that hosts and operators keep: each is read, or refused by an error that names it."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

_OFFSET_BYTES = 3


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="paywarden-fuzz-"))


def patched(whole: bytes, data: bytes) -> bytes:
    """Returns the bytes of a file as an input says: a byte, three bytes of a place, and what stands there instead.

    Even bytes cut the file there first, odd ones write over the bytes behind it.
    """
    at = int.from_bytes(data[1 : 1 + _OFFSET_BYTES], "little") % (len(whole) + 1)
    new = data[1 + _OFFSET_BYTES :]
    return whole[:at] + new + (whole[at + len(new) :] if data[:1] and data[0] & 1 else b"")


def host_file() -> Target:
    """Small files of a scoring host: deployment, orders, a checker's answer, counts, cursors, notes of the mirror."""
    from paywarden.schemas.errors import Misconfigured
    from paywarden.scoring.metrics import shared_metrics
    from paywarden.scoring.server.deployment.deployment_file import read_deployment
    from paywarden.scoring.server.deployment.releases import read_orders
    from paywarden.scoring.state.outbox import Cursor, OutboxSettings
    from paywarden.scoring.state.shards import HeldShards
    from paywarden.streams.companion.cursors import ShippedTo

    folder = _folder()
    file = folder / "worker-0.metrics"
    (folder / "worker-0").mkdir()
    cursor = Cursor(OutboxSettings(directory=str(folder)), "worker-0")

    def target(data: bytes) -> None:
        file.write_bytes(data)
        with suppress(Misconfigured):
            read_deployment(file)
        with suppress(Misconfigured):
            assert all(isinstance(key, str) for key in read_orders(file).keys)
        shared_metrics.render(folder)
        cursor._path.write_bytes(data)
        cursor.load()
        with suppress(Misconfigured):
            ShippedTo.from_bytes(data)
        with suppress(ValueError):
            HeldShards.from_bytes(data)

    return target


def _host_file() -> Iterator[bytes]:
    from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
    from paywarden.scoring.server.deployment.deployment_file import Deployment, ReleasePaths, content_of
    from paywarden.scoring.server.deployment.releases import ReleaseOrders
    from paywarden.scoring.state.shards import HeldShards
    from paywarden.streams.companion.cursors import ShippedTo

    paths = ReleasePaths("/b", bundle_digest="00")
    yield json.dumps(content_of(Deployment(paths, candidate=paths, rollout="r", share=5, salt="00" * 16))).encode()
    yield json.dumps(asdict(ReleaseOrders("a", "b", "c", "r", 5, "00" * 16))).encode()
    yield b"17,%08x" % zlib.crc32(b"17")
    yield ShippedTo(5, 6, "boot").to_bytes()
    yield HeldShards("00", frozenset({1, 9})).to_bytes()
    registry, folder = MetricsRegistry(), _folder()
    registry.counter("a_total", "help").add(2)
    registry.open(folder, "worker-0")
    registry.close()
    yield (folder / "worker-0.metrics").read_bytes()
    yield b'{"version": 1, "active": ' + b"[" * 3000


def operator_file() -> Target:
    """Files that people write or carry: people, tokens, lists, lag traces, gateways, backups, figures of benchmarks."""
    from paywarden.features.history.staleness import Staleness
    from paywarden.models.policy.lists import read_lists
    from paywarden.models.registry.people import RegistryPeople as Signers
    from paywarden.ops.capacity.coefficients import Coefficients
    from paywarden.ops.capacity.measured_costs import MEASURED
    from paywarden.ops.console.people import People
    from paywarden.ops.gateway.description import read_description
    from paywarden.schemas.errors import Misconfigured
    from paywarden.schemas.key_files import read_hex_key
    from paywarden.scoring.net.tokens import Tokens
    from paywarden.streams.maintenance.backup import MANIFEST, read_backup

    folder = _folder()
    file = folder / MANIFEST
    file.touch(mode=0o600)
    (folder / "secret").write_bytes(b"s" * 40)
    figures = MEASURED

    def target(data: bytes) -> None:
        file.write_bytes(data)
        for read in (
            Signers.read,
            People.read,
            lambda path: Tokens(str(path)),
            lambda path: read_lists({"cards": (f"@{path}",)}),
            lambda path: Staleness.read(str(path)),
            read_description,
            lambda path: read_backup(path.parent),
            lambda path: Coefficients.read([path], figures),
            lambda path: read_hex_key("[a] key_file", str(path)),
        ):
            with suppress(Misconfigured):
                read(file)

    return target


def _operator_file() -> Iterator[bytes]:
    from tests.worlds.rollout.registry import people_file

    yield people_file(_folder(), {"anna": ("propose", "approve"), "ben": ("lead",)}).read_bytes()
    kept = f"$argon2id$v=19$m=19456,t=2,p=1${'A' * 22}${'A' * 43}"
    person = f'[[person]]\nname = "anna"\nroles = ["analyst"]\npassword = "{kept}"\n'
    yield f'{person}[[token]]\nname = "siem"\nroles = ["auditor"]\nsha256 = "{"0f" * 32}"\n'.encode()
    yield b"# tokens\ncheckout:Zk3nD0e8Qw7xT5bR\n9fQ2mL6vX1cJ4hYs\n"
    yield b"time_ms,lag_ms\n1767866400000,350\n1767866460000,900\n"
    yield (
        b'[to_hosts]\nsecret_file = "secret"\n[listen]\naddress = "127.0.0.1:1"\n[[hosts]]\nname = "a"\n'
        b'address = "127.0.0.1:2"\n[[clients]]\nname = "c"\nrate = 5\n'
    )
    yield b'{"format": 1, "profile_set": "", "group": "g", "taken_time_ms": 5, "offsets": {"payments": {"0": 7}}}'
    yield b'{"cores_0_serve": 0.1, "cores_500_serve": 0.5, "machine_cores": 2}'
    yield b"c-1\nc-2\n# nothing\n\xc3\xa9\n"
    yield b"00112233445566778899aabbccddeeff"


def bundle_files() -> Target:
    """A bundle: a byte for the file, then how it is other (`patched`)."""
    from paywarden.models.bundle.bundle import load_bundle
    from paywarden.models.bundle.signature import TrustedKeys, sign_bundle
    from paywarden.schemas.errors import BundleRefused
    from tests.worlds.rollout.registry import key_of, people_file
    from tests.worlds.small import small_world

    folder = _folder()
    digest = small_world.engine().plan.digest
    bundle = small_world.copied_bundle(folder)
    people_file(folder, {"anna": ("propose",)})
    sign_bundle(bundle, folder / "anna.pem")
    from paywarden.models.bundle.signature import fingerprint

    key = key_of("anna").public_key()
    trusted = TrustedKeys({fingerprint(key): key})
    files = [path for path in sorted(bundle.iterdir()) if path.is_file()]
    files += sorted(bundle.glob("native/**/build.json"))
    whole = {path: path.read_bytes() for path in files}

    def target(data: bytes) -> None:
        path = files[data[0] % len(files) if data else 0]
        path.unlink()
        path.write_bytes(patched(whole[path], data[1:]))
        try:
            with suppress(BundleRefused):
                trusted.require(bundle)
            with suppress(BundleRefused):
                load_bundle(bundle, catalogue_digest=digest).close()
        finally:
            path.unlink()
            path.write_bytes(whole[path])

    return target


def _bundle_files() -> Iterator[bytes]:
    # Nothing of a file, some of it, other bytes in its beginning and in its middle.
    for number in (0, 4, 10, 13, 22):
        yield bytes([number]) + b"\0\0\0\0"
    yield b"\5\0\x40\0\0"
    yield b"\x0c\1\x08\0\0\xff\xff"
    yield b"\x0b\1\x90\2\0[["
    yield b"\0\0\0\0\0" + b"[" * 3000


def policy_files() -> Target:
    """A policy that was prepared for serving, its long and its short lists: as `bundle_files`."""
    from unittest.mock import patch

    from paywarden.features.catalogue.catalogue import CATALOGUE
    from paywarden.models.policy import mapped_list
    from paywarden.models.policy.policy import ConfiguredRule, ConfiguredSegment, Policy, PolicySettings
    from paywarden.models.policy.prepared_policy import load_policy, prepare_policy
    from paywarden.schemas.errors import Misconfigured

    folder = _folder()
    settings = PolicySettings(
        rules=(ConfiguredRule("known", "card_id in lists.long", "approve", override=True),),
        segments=(ConfiguredSegment("large", "amount > 5000", 0.1, 0.2),),
        lists={"long": ("@file",), "short": ("@file",)},
    )
    lists = {"long": frozenset({"c-1", "c-2", "c-3"}), "short": frozenset({"m-1"})}
    with patch.object(mapped_list, "MAPPED_FROM", 3):
        policy = Policy(settings, review_at=0.3, decline_at=0.9, lists=lists)
        prepare_policy(policy, folder, review_at=0.3, decline_at=0.9)
    files = sorted(folder.iterdir())
    whole = {path: path.read_bytes() for path in files}

    def target(data: bytes) -> None:
        path = files[data[0] % len(files) if data else 0]
        path.unlink()
        path.write_bytes(patched(whole[path], data[1:]))
        with suppress(Misconfigured):
            loaded = load_policy(folder, CATALOGUE)
            assert "c-9" not in loaded.policy.lists["long"]
        path.unlink()
        path.write_bytes(whole[path])

    return target


def _policy_files() -> Iterator[bytes]:
    for number in range(3):
        yield bytes([number]) + b"\0\0\0\0"
        yield bytes([number]) + b"\0\x20\0\0"
        yield bytes([number]) + b"\1\x08\0\0\xff\xff"
        yield bytes([number]) + b"\1\x60\0\0[]"
    yield b"\2\0\0\0\0" + b"[" * 3000
    yield b"\2\0\0\0\0" + b'{"settings": [], "list_digests": [], "digest": 5, "review_at": 1, "decline_at": "x"}'


def answered_table() -> Target:
    """The table of answered payments with other bytes in it: pairs of a place and a word, between payments.

    Whatever the table says, a payment is decided, or gets a decision about itself.
    """
    import struct

    from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
    from paywarden.scoring.idempotency import decision_cache
    from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheMetrics, DecisionCacheSettings
    from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
    from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
    from tests.oracles.claims import claim_all, place_all
    from tests.unit.scoring.idempotency.test_decision_cache import asked, entry_of, payment

    folder = _folder()
    outbox_settings = OutboxSettings(directory=str(folder / "outbox"))
    settings = DecisionCacheSettings(path=str(folder / "answered"), payments_max=64)
    outbox = OutboxWriter(outbox_settings, "worker-0")
    numbers = iter(range(1 << 40))

    def decide(table: DecisionCache, requests: Sequence[Any]) -> None:
        for request, claim in zip(requests, claim_all(table, asked(requests)), strict=True):
            if isinstance(claim, OutboxEntry):
                assert claim.request == request
            elif isinstance(claim, int):
                record = entry_of(request, f"d{next(numbers)}").SerializeToString()
                place_all(table, [claim], [outbox.position])
                outbox.append(record)
                table.settle([claim])

    def target(data: bytes) -> None:
        Path(settings.path).unlink(missing_ok=True)
        decision_cache.prepare(settings)
        requests = [payment(f"p{number}") for number in range(12)]
        metrics = DecisionCacheMetrics.declare(MetricsRegistry())
        table = DecisionCache(settings, outbox_settings, 0, metrics)
        decide(table, requests[:8])
        table.close()
        with Path(settings.path).open("r+b") as file:
            size = file.seek(0, 2)
            for at in range(0, len(data) - 9, 10):
                place, word = struct.unpack_from("<H8s", data, at)
                file.seek(place * 8 % size)
                file.write(word)
        decision_cache.prepare(settings)
        table = DecisionCache(settings, outbox_settings, 0, metrics)
        decide(table, requests)
        decide(table, requests)
        table.close()

    return target


def _answered_table() -> Iterator[bytes]:
    yield b"\0\0" + b"\xff" * 8
    yield b"".join(bytes([place, 0]) + b"\xff" * 8 for place in range(64))
    yield b"".join(bytes([place, 0]) + bytes(8) for place in range(64))
    yield b"".join(bytes([place, 1]) + b"\1" + bytes(6) + b"\x80" for place in range(120))


TARGETS: dict[str, Callable[[], Target]] = {
    make.__name__: make for make in (host_file, operator_file, bundle_files, policy_files, answered_table)
}
SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "host_file": _host_file,
    "operator_file": _operator_file,
    "bundle_files": _bundle_files,
    "policy_files": _policy_files,
    "answered_table": _answered_table,
}
