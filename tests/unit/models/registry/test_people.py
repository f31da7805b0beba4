"""The file of people, and the files of their keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_public_key

from paywarden.models.bundle.signature import fingerprint
from paywarden.models.registry.people import RegistryPeople, make_signing_key, public_text, read_signing_key
from paywarden.schemas.errors import Misconfigured
from tests.worlds.rollout.registry import key_of, people_file

ANNA = public_text(key_of("anna").public_key())


def test_people_are_read_with_their_roles_keys_and_last_day(tmp_path: Path) -> None:
    path = people_file(tmp_path, {"anna": ("propose",), "ben": ("approve", "roll_back")})
    path.write_text(path.read_text("utf-8") + "until = 2026-10-01\n", "utf-8")
    people = RegistryPeople.read(path)
    assert people.names() == ["anna", "ben"]
    ben = people.owner(fingerprint(key_of("ben").public_key()))
    assert ben is not None
    assert (ben.name, sorted(ben.roles), ben.until_ms) == ("ben", ["approve", "roll_back"], 1_790_899_200_000)
    assert people.owner("0" * 16) is None


def test_a_key_is_the_middle_line_of_the_pem_file(tmp_path: Path) -> None:
    pem = f"-----BEGIN PUBLIC KEY-----\n{ANNA}\n-----END PUBLIC KEY-----\n"
    assert load_pem_public_key(pem.encode()) == key_of("anna").public_key()
    made = make_signing_key(tmp_path / "new.pem")
    assert (tmp_path / "new.pem").stat().st_mode & 0o777 == 0o600
    assert read_signing_key(tmp_path / "new.pem").private_bytes_raw() == made.private_bytes_raw()
    with pytest.raises(Misconfigured, match=r"cannot make the key .*new.pem: File exists"):
        make_signing_key(tmp_path / "new.pem")


PERSON = f'[[person]]\nname = "anna"\nroles = ["propose"]\nkeys = ["{ANNA}"]\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"wanted tables \[\[person\]\] and nothing else"),
        ("people = 3", "wanted tables"),
        ("[[person", "is not TOML"),
        ("[[person]]", r"person 1: name: wanted letters, .*, got None"),
        (PERSON.replace("propose", "own"), r"person 1 \(anna\): roles: wanted a list of propose, .*, got \['own'\]"),
        (PERSON.replace("keys", "key"), "there is no setting 'key'; there are keys, name, roles, until"),
        (PERSON.replace(ANNA, ANNA[:-4]), r"person 1 \(anna\): keys: wanted the line between BEGIN and END"),
        (PERSON + "until = 3", r"until: wanted a day such as 2026-10-01, got 3"),
        (PERSON + PERSON, r"person 2 \(anna\): there are two with this name"),
        (PERSON + PERSON.replace('"anna"', '"ben"'), r"person 2 \(ben\): keys: anna has the same key"),
        ('[[person]]\nname = "anna"\nroles = []\nkeys = []', "keys: wanted a list of public keys"),
    ],
)
def test_what_is_wrong_with_people_is_one_line_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "people.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(Misconfigured, match=told) as caught:
        RegistryPeople.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value).replace("is not TOML: ", "")


def test_a_file_of_people_that_others_can_change_decides_nothing(tmp_path: Path) -> None:
    path = people_file(tmp_path, {"anna": ("propose",)})
    path.chmod(0o666)
    with pytest.raises(Misconfigured, match="can be written by others"):
        RegistryPeople.read(path)


def test_a_key_that_is_missing_open_to_others_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    people_file(tmp_path, {"anna": ("propose",)})
    key = tmp_path / "anna.pem"
    assert fingerprint(read_signing_key(key).public_key()) == fingerprint(key_of("anna").public_key())
    key.chmod(0o640)
    with pytest.raises(Misconfigured, match=r"anna.pem can be read by others \(mode 640\); wanted 600"):
        read_signing_key(key)
    key.chmod(0o600)
    key.write_bytes(X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(Misconfigured, match="holds another kind of key"):
        read_signing_key(key)
    key.write_text("no key", "utf-8")
    with pytest.raises(Misconfigured, match="holds no private key in PEM"):
        read_signing_key(key)
    with pytest.raises(Misconfigured, match=r"cannot read the key .*absent.pem: No such file"):
        read_signing_key(tmp_path / "absent.pem")
