"""People and their roles, from a file:

    [[person]]
    name = "anna"
    roles = ["analyst", "lead"]
    password = "$argon2id$v=19$m=19456,t=2,p=1$w4Zp…$2tq9…"

    [[token]]
    name = "siem"
    roles = ["auditor"]
    sha256 = "6f1d…"

`paywarden admin console` makes the line of a password (--password), or a token and its line (--token). The file holds
no password and no token: a password is hashed by Argon2id with a salt of its own, a token has 256 random bits.

The console follows the file. If it has changed, and has stood still for a second, the console goes on with its people.
A file that cannot be used changes nothing: the log and each page say why, and the people before stay.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import file_state
from paywarden.schemas.private_files import require_unwritable
from paywarden.schemas.toml_file import toml_file


class Role(StrEnum):
    """A set of acts that a person may do. A person may have several roles."""

    ANALYST = "analyst"
    LEAD = "lead"
    MODEL_OWNER = "model_owner"
    AUDITOR = "auditor"
    OPERATOR = "operator"


EVERYBODY = frozenset(Role)
"""The roles of a page that everybody may see who is logged in."""

CARD_ROLES = frozenset({Role.ANALYST, Role.LEAD})
"""The roles of people who see ids of cards, devices and addresses as they are."""

MASK = "•" * 6
PASSWORD_CHARS_MIN, PASSWORD_CHARS_MAX = 12, 200
TOKEN_PREFIX = "pwc_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
# As OWASP advises: 19 MiB and some 30 ms for one try.
_MEMORY_KB, _ROUNDS, _HASH_BYTES, _SALT_BYTES = 19_456, 2, 32, 16
_HASH = re.compile(r"\$argon2id\$v=19\$m=([0-9]{4,6}),t=([0-9]),p=1\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{43}")
_MEMORY_KB_MAX = 262_144
_FOLLOW_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Person:
    """The person who looks at a page or calls the API."""

    name: str
    roles: frozenset[Role]

    def may(self, roles: frozenset[Role]) -> bool:
        """Return whether the person has one of these roles."""
        return bool(self.roles & roles)

    @property
    def sees_cards(self) -> bool:
        """Whether the person sees ids of cards, devices and addresses as they are."""
        return bool(self.roles & CARD_ROLES)


def masked(value: str, person: Person) -> str:
    """Return a sensitive value as the person may see it: whole, or its last four characters of at least twelve."""
    if person.sees_cards or not value:
        return value
    return MASK + (value[-4:] if len(value) >= 12 else "")


DEMO_PEOPLE = tuple(Person(f"demo-{role.value.replace('_', '-')}", frozenset({role})) for role in Role)
"""The people of a console without a file of people. None has a password."""


@dataclass(frozen=True)
class People:
    """The people and tokens of a file. `hashes` has the password of each person by name."""

    people: Mapping[str, Person] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict, repr=False)
    tokens: Mapping[str, Person] = field(default_factory=dict, repr=False)
    is_demo: bool = False

    @classmethod
    def demo(cls) -> People:
        """Return the demo people, one of each role."""
        return cls({person.name: person for person in DEMO_PEOPLE}, is_demo=True)

    @classmethod
    def read(cls, path: Path) -> People:
        """Return the people of a file. Raises Misconfigured naming the file, the table and the setting."""
        require_unwritable(path)
        content = toml_file(path, "the people")
        if odd := sorted(content.keys() - {"person", "token"}):
            raise Misconfigured(f"{path}: wanted tables [[person]] and [[token]], got {odd[0]!r}")
        people: dict[str, Person] = {}
        hashes: dict[str, str] = {}
        for number, entry in enumerate(_tables(path, content, "person"), 1):
            where = f"{path}, person {number}"
            person = _person(where, entry, "password")
            if person.name in people:
                raise Misconfigured(f"{where}: there are two with the name {person.name!r}")
            people[person.name] = person
            hashes[person.name] = _checked_hash(f"{where} ({person.name})", entry["password"])
        tokens: dict[str, Person] = {}
        for number, entry in enumerate(_tables(path, content, "token"), 1):
            where = f"{path}, token {number}"
            owner = _person(where, entry, "sha256")
            digest = entry["sha256"]
            if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise Misconfigured(f"{where} ({owner.name}): sha256: wanted 64 hex digits")
            if digest in tokens or owner.name in people or owner.name in {one.name for one in tokens.values()}:
                raise Misconfigured(f"{where}: there are two with the name {owner.name!r}, or two with this token")
            tokens[digest] = owner
        if not (people or tokens):
            raise Misconfigured(f"{path}: wanted at least one [[person]] or [[token]], got none")
        return cls(people, hashes, tokens)

    def with_password(self, name: str, password: str) -> Person | None:
        """Return the person; None for a wrong name or password. An unknown name takes as long as a known one."""
        known = self.hashes.get(name)
        is_right = _verifies(known or _nobody(), password)
        return self.people[name] if known is not None and is_right else None

    def with_token(self, token: str) -> Person | None:
        """Return the owner of a token; None for an unknown one."""
        return self.tokens.get(token_digest(token)) if token.startswith(TOKEN_PREFIX) else None


def hashed_password(password: str) -> str:
    """Return the line for the file of people.

    Raises Misconfigured for a password that is too short or too long, or one of the most common.
    """
    if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
        raise Misconfigured(f"password: wanted {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters")
    if password.strip().casefold() in _common_passwords():
        raise Misconfigured("password: wanted another one: this is among the most used, which are tried first")
    return _kdf(secrets.token_bytes(_SALT_BYTES)).derive_phc_encoded(password.encode())


def _kdf(salt: bytes) -> Argon2id:
    return Argon2id(salt=salt, length=_HASH_BYTES, iterations=_ROUNDS, lanes=1, memory_cost=_MEMORY_KB)


@cache
def _common_passwords() -> frozenset[str]:
    lines = Path(__file__).with_name("common_passwords.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def new_token() -> str:
    """Return a new token; its owner alone has it."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_digest(token: str) -> str:
    """Return the sha256 of a token, 64 hex digits. A token has 256 random bits and needs no salt."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_person_name(text: object) -> bool:
    """Return whether a person may have this name: letters, digits and . _ @ -, at most 64."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def role_of(text: object) -> Role | None:
    """Return the role of this name; None for another."""
    return Role(text) if isinstance(text, str) and text in list(Role) else None


def _tables(path: Path, content: Mapping[str, Any], name: str) -> list[Any]:
    tables = content.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise Misconfigured(f"{path}: wanted tables [[{name}]]")
    return tables


def _person(where: str, entry: Mapping[str, Any], secret: str) -> Person:
    wanted = {"name", "roles", secret}
    if odd := sorted(entry.keys() ^ wanted):
        raise Misconfigured(f"{where}: wanted {', '.join(sorted(wanted))}; wrong is {odd[0]!r}")
    name, roles = entry["name"], entry["roles"]
    if not is_person_name(name):
        raise Misconfigured(f"{where}: name: wanted letters, digits and . _ @ -, at most 64, got {name!r}")
    if not isinstance(roles, list) or not roles or not all(map(role_of, roles)):
        raise Misconfigured(f"{where} ({name}): roles: wanted a list of {', '.join(Role)}, got {roles!r}")
    return Person(name, frozenset(map(Role, roles)))


def _checked_hash(where: str, text: object) -> str:
    found = _HASH.fullmatch(text) if isinstance(text, str) else None
    if found is None or not 8 <= int(found[1]) <= _MEMORY_KB_MAX or not int(found[2]):
        raise Misconfigured(f"{where}: password: wanted a line of `paywarden admin console --password`")
    return found[0]


def _verifies(known: str, password: str) -> bool:
    if len(password) > PASSWORD_CHARS_MAX:
        return False
    try:
        Argon2id.verify_phc_encoded(password.encode("utf-8", "surrogatepass"), known)
    except (InvalidKey, ValueError):
        return False
    return True


@cache
def _nobody() -> str:
    """Return a hash for unknown names: the comparison then takes as long as that of a known name."""
    return _kdf(bytes(_SALT_BYTES)).derive_phc_encoded(secrets.token_bytes(_HASH_BYTES))


class PeopleFile:
    """The file of people, read at the start. `people`: those of its newest usable content. Raises Misconfigured."""

    def __init__(self, path: Path, clock: Callable[[], int] = now_ms) -> None:
        self._path, self._clock = path, clock
        # The states of the file in use, and at the last look: taken before a file is read.
        self._used = self._seen = file_state(path)
        self.people = People.read(path)
        self._right_ms, self.trouble = clock(), ""

    @property
    def trouble_since_ms(self) -> int:
        """When the file was last usable."""
        return self._right_ms

    def follow(self, take: Callable[[People], object], stop: threading.Event) -> None:
        """Give the people of each changed file to `take`, until `stop` is set."""
        while not stop.wait(_FOLLOW_S):
            if self.look():
                take(self.people)

    def look(self) -> bool:
        """Read the file if it has changed. Return whether there are new people."""
        state = file_state(self._path)
        if state == self._used and not self.trouble:
            self._right_ms = self._clock()
            return False
        if state != self._seen:
            # It may still be written: half a file would end the sessions of the people in its other half.
            self._seen = state
            return False
        try:
            self.people = People.read(self._path)
        except Misconfigured as error:
            if str(error) != self.trouble:
                _log.error("%s; the people before stay", error)
            self.trouble = str(error)
            return False
        self._used, self._right_ms, self.trouble = state, self._clock(), ""
        _log.info("%s has changed: %d people, %d tokens", self._path, len(self.people.people), len(self.people.tokens))
        return True
