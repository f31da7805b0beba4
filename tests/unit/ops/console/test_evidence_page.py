"""Evidence is made in the background by those who may, shown, checked and sent as it was made."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.testclient import TestClient

from paywarden.ops.console.background import running
from paywarden.ops.console.evidence_page import PATH, EvidencePages, Packs
from paywarden.ops.console.page_rows import Section
from paywarden.ops.evidence.evidence_run import make_evidence
from paywarden.schemas.settings import Source
from tests.services.product.console import NOW_MS, ConsoleUnderTest, console_under_test
from tests.services.product.processes import wait_until
from tests.unit.ops.commands.watch.test_evidence import World as Archived

DAYS = {"first_day": "2026-01-01", "last_day": "2026-12-31", "remote": "ecom,app"}
_NEVER = threading.Event()


@dataclass
class World:
    """A console over an archive of a year."""

    folder: Path
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        Archived(payments=200).write(self.folder / "archive")
        key_file = self.folder / "key.pem"
        key_file.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.console: ConsoleUnderTest = console_under_test(self.folder / "console")
        self.packs = Packs(Source({}, {}), self.folder / "archive", self.packs_folder, key_file, self.console.audit)
        self.sections: tuple[Section, ...] = (EvidencePages(self.packs).section(),)

    @property
    def packs_folder(self) -> Path:
        return self.folder / "console" / "evidence"

    def browser(self, person: str = "demo-lead") -> TestClient:
        return self.console.browser(self.sections, person)

    def make(self) -> None:
        """Have a pack of the year made by the console's thread."""
        browser = self.browser()
        with running(self.sections):
            assert browser.post(f"{PATH}/make", data=DAYS).status_code == 303
            wait_until(lambda: "signed, and right" in browser.get(PATH).text, "the pack is made")

    @property
    def address(self) -> str:
        """The path of the pack's page."""
        return f"{PATH}/packs/{self.packs.all()[-1].name}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a pack: a process that makes one takes seconds."""
    made = World(tmp_path_factory.mktemp("evidence"))
    made.make()
    return made


@pytest.fixture
def empty(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_pack_is_the_one_that_the_command_writes(world: World) -> None:
    address, browser = world.address, world.browser("demo-analyst")
    page = browser.get(address).text
    assert "signed, and right" in page
    assert "Changed since" not in page
    (made,) = world.packs_folder.glob("2026-01-01_2026-12-31_*")
    asked = world.packs._asked(world.packs.all()[-1])
    files = make_evidence(Source({}, {}), asked, world.folder / "again", world.folder / "key.pem", print)
    for file in files:
        sent = browser.get(f"{address}/files/{file.name}")
        assert sent.content == file.read_bytes() == (made / "pack" / file.name).read_bytes(), file.name
        assert "attachment" in sent.headers["content-disposition"]
    sums = (world.folder / "again" / "SHA256SUMS").read_bytes()
    world.key.public_key().verify(browser.get(f"{address}/files/SHA256SUMS.sig").content, sums)
    entries = [(one.act, one.by, dict(one.what)) for one in world.console.audit.newest(20)]
    assert ("asked_for", "demo-lead", DAYS) in entries
    assert ("made", "demo-lead", {"digest": hashlib.sha256(sums).hexdigest()}) in entries
    assert ("exported", "demo-analyst", {"file": "evidence.html"}) in entries
    assert not (world.packs_folder / ".making").exists()


def test_figures_and_their_csv_are_on_the_page_and_hold_no_formula(world: World) -> None:
    address, browser = world.address, world.browser("demo-auditor")
    page = browser.get(address).text
    figures = json.loads(browser.get(f"{address}/files/evidence.json").text)["figures"]
    row = dict(zip(figures["exemptions"]["columns"], figures["exemptions"]["rows"][0], strict=True))
    assert f"{row['value_minor'] / 100:,.2f}" in page
    assert "Fraud rates of remote payments" in page
    assert "SELECT" in page
    merchants = list(csv.DictReader(io.StringIO(browser.get(f"{address}/files/merchants.csv").text)))
    assert {one["merchant_id"] for one in merchants} == {"'=shop", "bakery", "travel", "books"}
    for name in ("coverage", "exemptions", "versions", "sample"):
        table = list(csv.reader(io.StringIO(browser.get(f"{address}/files/{name}.csv").text)))
        assert table[0] == figures[name]["columns"]
        assert len(table) == 1 + figures[name]["row_count"]
    assert browser.get(f"{address}/files/reviews.csv").status_code == 404
    assert "The archive has no verdicts." in page


def test_a_changed_file_is_named_and_not_sent(world: World) -> None:
    name = "2026-01-01_2026-12-31_0000ff"
    shutil.copytree(world.packs_folder / world.packs.all()[-1].name, world.packs_folder / name)
    address, browser, pack = f"{PATH}/packs/{name}", world.browser(), world.packs_folder / name / "pack"
    (pack / "merchants.csv").write_text("month,merchant_id\n")
    assert "Changed since the pack was made: merchants.csv" in browser.get(address).text
    assert browser.get(f"{address}/files/merchants.csv").status_code == 409
    sums = (pack / "SHA256SUMS").read_text()
    digest = hashlib.sha256((pack / "merchants.csv").read_bytes()).hexdigest()
    lines = [f"{digest}  merchants.csv" if "merchants" in line else line for line in sums.splitlines()]
    (pack / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    # The checksums fit now: the signature does not.
    assert "wrong: not by the key" in browser.get(address).text
    (pack / "SHA256SUMS.sig").unlink()
    assert "not signed" in browser.get(PATH).text
    shutil.rmtree(pack.parent)


def test_roles_decide_who_makes_and_who_reads(world: World) -> None:
    address = world.address
    for person in ("demo-analyst", "demo-auditor", "demo-lead"):
        browser = world.browser(person)
        may_make = person != "demo-analyst"
        assert ("Make a pack" in browser.get(PATH).text) == may_make
        assert browser.post(f"{PATH}/make", data=DAYS).status_code == (303 if may_make else 403)
        assert browser.get(address).status_code == 200
    for person in ("demo-operator", "demo-model-owner"):
        browser = world.browser(person)
        for path in (PATH, address, f"{address}/files/evidence.html"):
            assert browser.get(path).status_code == 403


def test_wrong_days_and_unknown_packs_are_refused(world: World) -> None:
    browser, jobs = world.browser(), world.packs.all()
    wrong = browser.post(f"{PATH}/make", data={**DAYS, "last_day": "2025-01-01"})
    assert wrong.status_code == 400
    assert "the end of the days must be after their begin" in wrong.text
    assert browser.post(f"{PATH}/make", data={**DAYS, "exempted": "sca"}).status_code == 400
    assert browser.post(f"{PATH}/make", data={"first_day": "soon", "last_day": "late"}).status_code == 400
    for path in ("/packs/none", "/packs/..%2f..", "/packs/2026-01-01_2026-12-31_000000"):
        assert browser.get(f"{PATH}{path}").status_code == 404
    assert world.packs.all() == jobs
    address = world.address
    for file in ("made.json", "..%2fmade.json", "nothing.csv"):
        assert browser.get(f"{address}/files/{file}").status_code == 404


def test_a_pack_that_cannot_be_made_says_why(empty: World) -> None:
    browser = empty.browser()
    browser.post(f"{PATH}/make", data={**DAYS, "exempted": "sca=tra"})
    assert empty.packs.step(NOW_MS, _NEVER)
    assert "has no column sca" in browser.get(PATH).text
    assert [path.name for path in empty.packs_folder.iterdir()] == []


def test_a_pack_that_is_being_made_can_be_cancelled(empty: World) -> None:
    browser = empty.browser()
    browser.post(f"{PATH}/make", data=DAYS)
    browser.post(f"{PATH}/make", data={**DAYS, "first_day": "2026-07-01"})
    first, second = reversed(empty.packs.all())
    before = browser.get(f"{PATH}/version").json()
    assert "waits for another pack" in browser.get(PATH).text

    class _Cancels(threading.Event):
        def is_set(self) -> bool:
            browser.post(f"{PATH}/makings/{first.name}/cancel")
            return False

    # It is asked when the process has run for half a second, which it needs for its imports.
    empty.packs.step(NOW_MS, _Cancels())
    assert browser.post(f"{PATH}/makings/{second.name}/cancel").status_code == 303
    assert browser.post(f"{PATH}/makings/{second.name}/cancel").status_code == 409
    assert browser.get(f"{PATH}/version").json() != before
    assert [one.state for one in empty.packs.all()] == ["cancelled", "cancelled"]
    assert not empty.packs.step(NOW_MS, _NEVER)
    assert empty.packs.made() == []
