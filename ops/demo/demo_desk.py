"""What a kept demonstration shows besides payments: two people, rules and a list, a registry, a case.

    anna   registers the model and the rules, proposes them, and promotes them
    ben    approves them
    anna   proposes a fourth rule                       ─► it waits for ben, on the page Models
    anna   opens a case about payments that were not approved, and assigns it to ben

Both may log in to the console. A person's passphrase, which signs acts on models, is their password.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.registry.people import public_text
from paywarden.models.registry.registry import Signer
from paywarden.ops import wiring
from paywarden.ops.console.case import CHANGED, LINKED, NOTED, OPENED, case_subject
from paywarden.ops.console.people import hashed_password
from paywarden.ops.times import now_ms
from paywarden.ops.wiring.serve_settings import ServeSettings
from paywarden.schemas.avro import LocalSchemaIds
from paywarden.schemas.private_files import make_private_folder
from paywarden.schemas.settings import read_source
from paywarden.streams.alerts.alert_events import ConsoleEvent, EventWriter
from paywarden.streams.kafka.client import KafkaSettings

PEOPLE = {"anna": "anna-sees-the-demo", "ben": "ben-sees-the-demo"}
"""The people and their passwords. The console listens on a loopback address, and its folder ends with the demo."""
_RULES = """\
[[policy.rules]]
name = "watched_merchant"
when = "merchant_id in lists.watched and amount > 80_00"
action = "review"
[[policy.rules]]
name = "much_cash"
when = 'channel == "atm" and amount > 400_00'
action = "review"
[[policy.rules]]
name = "large_online"
when = 'channel == "ecom" and amount > 600_00'
action = "review"
"""
_PROPOSED_RULE = """\
[[policy.rules]]
name = "large_by_telephone"
when = 'channel == "moto" and amount > 1_000_00'
action = "review"
"""
_LISTS = """\
[policy.lists]
watched = ["@{watched}"]
"""
_WATCHED = "".join(f"merchant-{number:05d}\n" for number in (1, 48, 345, 434, 810, 1223))
_MODELS = """\
[models]
folder = {registry}
people = {people}
approvals = 1
"""
_ROLES = {"anna": ["propose", "promote", "roll_back"], "ben": ["approve", "roll_back"]}
_CONSOLE_ROLES = ["analyst", "lead", "model_owner", "operator", "auditor"]
_CASE_ID = "first-case"


class Desk:
    """The files of people, rules and registry in a folder, and the acts of the two people."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys = {name: Ed25519PrivateKey.generate() for name in PEOPLE}
        self.keys, self.people = folder / "console-keys", folder / "console-people.toml"

    def prepare(self) -> str:
        """Write the files; returns the sections [policy] and [models] of all processes."""
        self.keys.mkdir(mode=0o700)
        for name, password in PEOPLE.items():
            encrypted = BestAvailableEncryption(password.encode())
            path = self.keys / f"{name}.pem"
            path.write_bytes(self._keys[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encrypted))
            path.chmod(0o600)
        public = {name: [public_text(key.public_key())] for name, key in self._keys.items()}
        signing = {name: {"roles": roles, "keys": public[name]} for name, roles in _ROLES.items()}
        people = _people_file(self._folder / "people.toml", signing)
        logins = {name: {"roles": _CONSOLE_ROLES, "password": hashed_password(word)} for name, word in PEOPLE.items()}
        _people_file(self.people, logins)
        watched = self._folder / "watched-merchants.txt"
        watched.write_text(_WATCHED, encoding="utf-8")
        self._lists = _LISTS.format(watched=watched)
        registry = json.dumps(str(self._folder / "registry"))
        return _RULES + self._lists + _MODELS.format(registry=registry, people=json.dumps(str(people)))

    def register(self, config: Path) -> None:
        """Let the model and the rules decide, by both people's acts, and propose one rule more."""
        source = read_source(str(config))
        signers = {name: Signer(name, key) for name, key in self._keys.items()}
        bundle = self._folder / "bundle"
        manifest = read_manifest(bundle)
        thresholds = manifest.review_at, manifest.decline_at
        proposed = self._folder / "proposed-policy.toml"
        proposed.write_text(_RULES + _PROPOSED_RULE + self._lists, encoding="utf-8")
        # With this folder the machine is a scoring host, and `serve` starts with the version that is promoted here.
        make_private_folder(Path(source.section("serve", ServeSettings).runtime))
        with wiring.shared_registry(source, _nobody) as registry:
            facts = wiring.bundle_facts(source, bundle), wiring.policy_facts(source, source, thresholds)
            entries = registry.register(signers["anna"], *facts, why="trained this morning", now_ms=now_ms())
            proposal = entries[-1].digest
            registry.approve(signers["ben"], proposal, why="the report is read", now_ms=now_ms())
            registry.promote(signers["anna"], proposal, why="the demonstration begins", now_ms=now_ms())
            policy = wiring.policy_facts(source, read_source(str(proposed), {}), thresholds)
            why = "review large payments by telephone, too"
            registry.register(signers["anna"], None, policy, why=why, now_ms=now_ms())

    def open_case(self, kafka: KafkaSettings, payment_ids: Sequence[str]) -> None:
        """Open a case about payments, assigned to ben."""
        writer, subject = EventWriter(kafka, LocalSchemaIds()), case_subject(_CASE_ID)
        acts: list[tuple[str, dict[str, str]]] = [(OPENED, {"title": "Payments stopped in the first minute"})]
        acts += [(LINKED, {"item": f"payment:{payment_id}"}) for payment_id in payment_ids]
        acts.append((CHANGED, {"field": "assigned_to", "before": "", "after": "ben"}))
        acts.append((NOTED, {"note": "Do these cards have a merchant in common?"}))
        for kind, what in acts:
            writer.write(ConsoleEvent(subject, kind, "anna", now_ms(), what))


def _people_file(path: Path, people: Mapping[str, Mapping[str, object]]) -> Path:
    # JSON writes texts and lists as TOML does.
    lines = [
        line
        for name, entry in people.items()
        for line in ("[[person]]", *(f"{key} = {json.dumps(value)}" for key, value in {"name": name, **entry}.items()))
    ]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    path.chmod(0o600)
    return path


def _nobody(_: str) -> None:
    return
