"""Models and rollouts: the registry's own rules, by any page and any token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from paywarden.models.registry.registry import BundleFacts, PolicyFacts, Signer
from paywarden.models.rollout.judgement import judge
from paywarden.models.rollout.plan import plan_of
from paywarden.models.rollout.rollout import EventKind, RolloutEvent
from paywarden.ops.cli import cli
from paywarden.ops.console.assembly import TABLES, sections
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.models.models_page import Models
from paywarden.ops.console.page_rows import NothingDone, Section
from paywarden.ops.console.people import People, Person, Role, token_digest
from paywarden.ops.console.shell import API
from paywarden.ops.wiring.registry import model_registry
from paywarden.ops.wiring.rollouts import read_rollouts
from paywarden.schemas.settings import Source
from tests.services.product.console import NOW_MS, ConsoleUnderTest, console_under_test
from tests.unit.models.rollout.test_judgement import counts_of
from tests.worlds.rollout.manifests import bundle_to_register, manifest_in, policy_to_register
from tests.worlds.rollout.people_with_keys import people_with_keys
from tests.worlds.rollout.signed_rollouts import SignedRollouts

PASSPHRASE = "a passphrase"
NAMES = ("anna", "ben")


@dataclass
class Registered:
    """A console, and a registry with a version that anna has proposed. One approval is needed."""

    console: ConsoleUnderTest
    desk: Desk
    proposal: str
    keys: dict[str, Ed25519PrivateKey]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Registered]:
    made = people_with_keys(tmp_path, NAMES, PASSPHRASE)
    keys, folder, models = made.keys, made.folder, made.models
    source = Source({"models": models, "serve": {"runtime": str(tmp_path / "none")}}, {})
    registry = model_registry(source)
    bundle = BundleFacts("a" * 64, "model-2", "c" * 64, "", {"manifest.json": b"{}"})
    policy = PolicyFacts("b" * 64, "[policy]\n")
    *_, entry = registry.register(Signer("anna", keys["anna"]), bundle, policy, why="better", now_ms=NOW_MS - 1000)
    console = console_under_test(tmp_path)
    owners = {name: Person(name, frozenset({Role.MODEL_OWNER, Role.LEAD})) for name in NAMES}
    tokens = {token_digest(f"pwc_{name}"): person for name, person in owners.items()}
    # Demo people, so that a test logs in without a password.
    console.shell.people = replace(People.demo(), people={**People.demo().people, **owners}, tokens=tokens)
    yield Registered(console, Desk(source, str(folder)), entry.digest, keys)
    console.database.close()


def test_a_proposer_cannot_approve_and_another_person_can(world: Registered) -> None:
    sections = [Models(world.desk).section()]
    anna, ben = (world.console.browser(sections, name) for name in NAMES)
    form = {"proposal": world.proposal, "why": "I like it", "passphrase": PASSPHRASE}
    refused = anna.post("/models/approve", data=form)
    assert refused.status_code == 409
    assert "You proposed it" in anna.get("/models").text
    wrong = ben.post("/models/approve", data={**form, "passphrase": "x"})
    assert wrong.status_code == 403
    done = ben.post("/models/approve", data=form)
    assert done.status_code == 303
    text = ben.get("/models").text
    assert "Approved by ben; 1 needed" in text
    assert "You approved it." in text
    assert 'action="/models/approve"' not in text
    assert [entry.by for entry in world.console.audit.newest(20) if entry.act == "approved"] == ["ben"]


def test_a_rollback_that_is_sent_twice_goes_back_once(world: Registered, tmp_path: Path) -> None:
    """Without a script a second click went back to the version before the one before."""
    sections = [Models(world.desk).section()]
    registry = model_registry(world.desk.source)
    anna = Signer("anna", world.keys["anna"])
    ben = Signer("ben", world.keys["ben"])
    first = bundle_to_register(tmp_path / "model-3")
    for number in range(3):
        policy = policy_to_register(0.5 + number / 10)
        *_, entry = registry.register(anna, None if number else first, policy, why="w", now_ms=NOW_MS)
        registry.approve(ben, entry.digest, why="w", now_ms=NOW_MS)
        registry.promote(anna, entry.digest, why="w", now_ms=NOW_MS)
    browser = world.console.browser(sections, "ben")
    text = browser.get("/models").text
    form = re.search(r'<form method="post" action="/models/rollback".*?</form>', text, re.S)
    assert form is not None
    once = re.search(r'name="once" value="([^"]+)"', form[0])
    assert once is not None
    data = {"why": "w", "passphrase": PASSPHRASE, "once": once[1]}
    assert [browser.post("/models/rollback", data=data).status_code for _ in range(2)] == [303, 303]
    assert "The form was sent twice, and counts once." in browser.get("/models").text
    champion = registry.state().champion
    assert champion is not None
    assert champion.policy == policy_to_register(0.6).digest


def test_an_approver_sees_what_a_version_changes(world: Registered, tmp_path: Path) -> None:
    registry = model_registry(world.desk.source)
    anna, ben = (Signer(name, world.keys[name]) for name in NAMES)
    first = bundle_to_register(tmp_path / "model-3")
    *_, entry = registry.register(anna, first, policy_to_register(0.5), why="w", now_ms=NOW_MS)
    registry.approve(ben, entry.digest, why="w", now_ms=NOW_MS)
    registry.promote(anna, entry.digest, why="w", now_ms=NOW_MS)
    policy = policy_to_register(0.7, {"stolen": frozenset({"card-1", "card-2"})})
    registry.register(anna, bundle_to_register(tmp_path / "model-4"), policy, why="w", now_ms=NOW_MS)
    view = world.desk.registry(Person("ben", frozenset(Role)), NOW_MS)
    changes, damaged = (one["changes"] for one in view["proposals"])
    told = [(line.kind, line.text) for line in changes.policy if line.kind != "same"]
    assert told == [("gone", "decline_at = 0.5"), ("new", "decline_at = 0.7"), ("new", "list stolen: 2 entries")]
    assert changes.model is not None
    assert changes.model_now is not None
    assert (changes.model_now.name, changes.model.name) == ("model-3", "model-4")
    text = world.console.browser([Models(world.desk).section()], "ben").get("/models").text
    assert "card-1" not in text
    # This version was registered with an invalid manifest: the page says so, and shows the rest.
    assert "wanted a manifest" in damaged.trouble
    assert "What it changes cannot be shown" in text


def test_the_page_tells_of_this_rollout_alone_and_of_what_changed_it(tmp_path: Path) -> None:
    """Looks that changed nothing, and events of earlier rollouts, stood between."""
    log, plan = SignedRollouts.at(tmp_path, begin_ms=NOW_MS - 1), plan_of([50, 100])
    for number, name in enumerate(("r-1", "r-2")):
        now = NOW_MS + number * 3_600_000
        log.start(plan, now, name)
        log.take(RolloutEvent(EventKind.READY, now + 1, "lead"))
        for look in range(3):
            seen = judge(plan, 0, counts_of(1_000, step=0, plan=plan))
            log.take(RolloutEvent(EventKind.LOOKED, now + 2 + look * 600_000, "lead", step=0, judgement=seen))
        if number == 0:
            log.take(RolloutEvent(EventKind.ABORTED, now + 1_800_000, "ben", "a bug"), "ben")
    desk = Desk(Source({"models": log.models}, {}), "")
    view = desk.rollout()
    assert [one.kind for one in view["events"]] == ["rollout ready", "rollout started"]
    assert [(one["name"], one["phase"], one["cause"]) for one in view["earlier"]] == [
        ("r-1", "aborted", "aborted by ben: a bug")
    ]
    assert [one["state"] for one in view["steps"]] == ["now", "ahead"]
    kinds = [one.kind for one in desk.happenings(NOW_MS, NOW_MS + 86_400_000)]
    assert kinds == ["rollout started", "rollout ready", "rollout aborted", "rollout started", "rollout ready"]
    console = console_under_test(tmp_path)
    version = console.browser([Models(desk).section()], "demo-analyst").get("/models/version").json()
    assert version == {"version": view["version"]}
    console.database.close()


def _kafka_is_away(*_: object) -> bool:
    raise NothingDone("no broker answers")


@pytest.fixture
def every_section(world: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Section, ...]]:
    """Every section of the console, as it is put together for people: one that is added later is tried, too."""
    # Commands about Kafka's topics alone approve nothing, and would wait for a broker.
    monkeypatch.setattr(AlertReader, "write", _kafka_is_away)
    shell, database = world.console.shell, world.console.database
    shell.settings = replace(shell.settings, keys=world.desk.keys)
    with database.write() as connection:
        for table in TABLES:
            connection.execute(table)
    values = {
        **world.desk.source.file,
        "kafka": {"bootstrap": "127.0.0.1:1"},
        "decision_index": {"path": str(tmp_path / "decisions.duckdb")},
    }
    made = tuple(sections(Source(values, {}), shell, database, world.console.audit))
    yield made
    for section in made:
        section.close()


@pytest.fixture
def proposed(world: Registered, tmp_path: Path) -> str:
    """Make a version the champion, and return the digest of a policy for it that anna proposes."""
    registry = model_registry(world.desk.source)
    anna, ben = (Signer(name, world.keys[name]) for name in NAMES)
    bundle = bundle_to_register(tmp_path / "model-3")
    *_, first = registry.register(anna, bundle, policy_to_register(0.5), why="the first", now_ms=NOW_MS - 900)
    registry.approve(ben, first.digest, why="w", now_ms=NOW_MS - 800)
    registry.promote(ben, first.digest, why="w", now_ms=NOW_MS - 700)
    *_, entry = registry.register(anna, None, policy_to_register(0.6), why="fewer reviews", now_ms=NOW_MS - 600)
    return entry.digest


PLAN = {"steps": "10,50,100", "hours": "2, 24", "margin": "0.3", "cards_a_day": "200000", "review": "5", "decline": "2"}


def planned(browser: TestClient, candidate: str, **more: str) -> dict[str, str]:
    """Returns the fields of the form that starts the plan which a page shows."""
    page = browser.get("/rollout/plan", params={**PLAN, "candidate": candidate, **more})
    assert page.status_code == 200, page.text
    form = re.search(r'<form method="post" action="/rollout/start".*?</form>', page.text, re.S)
    assert form is not None, page.text
    return dict(re.findall(r'name="(\w+)" value="([^"]*)"', form[0]))


def plan_view(browser: TestClient, person: str, **fields: str) -> dict[str, Any]:
    """Returns the plan that a program gets."""
    answer = browser.get(f"{API}/rollout/plan", params=fields, headers={"authorization": f"Bearer pwc_{person}"})
    assert answer.status_code == 200, answer.text
    view: dict[str, Any] = answer.json()["view"]
    return view


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=60
)
@given(data=st.data())
def test_no_endpoint_lets_somebody_approve_their_own(
    world: Registered, every_section: tuple[Section, ...], proposed: str, data: st.DataObject
) -> None:
    """anna tries every POST page of the console, by the pages and by the API, with any fields it takes.

    She has proposed two versions, and has the plan of a rollout of one: she neither approves, promotes nor tries it.
    """
    acts = [page for one in every_section for page in one.pages if page.method == "POST"]
    signed = [page for page in acts if any(field.name == "passphrase" for field in page.fields)]
    page = data.draw(st.sampled_from(signed) | st.sampled_from(acts))
    own = st.sampled_from([world.proposal, world.proposal[:12], proposed, "model-2", "a" * 64, "x"])
    browser = world.console.browser(every_section, "anna")
    plan = plan_view(browser, "anna", **PLAN, candidate=proposed)["digest"]
    assert plan
    # Half of the tries have everything right but who does it.
    right = {"proposal": proposed, "candidate": proposed, "plan": plan, "passphrase": PASSPHRASE, **PLAN}
    values = {
        "passphrase": st.sampled_from([PASSPHRASE, "x"]),
        "plan": st.sampled_from([plan, "x"]),
        "text": st.just("[policy]\nreview_at = 0.2\ndecline_at = 0.9\n"),
        "back": st.just("/models"),
        "shadow": st.just(""),
        **{name: st.sampled_from(["", PLAN.get(name, "0.05")]) for name in ("steps", "hours", "margin", "tolerance")},
    }
    is_right = data.draw(st.booleans())
    fields = {}
    for field in page.fields:
        if is_right and field.name in ("tolerance", "alpha", *right):
            fields[field.name] = right.get(field.name, "")
        elif field.kind != "file":
            fields[field.name] = data.draw(
                values.get(field.name, st.sampled_from(field.choices) if field.choices else own)
            )
    if not is_right and data.draw(st.booleans()):
        fields["by"] = "ben"
    path = re.sub(r"{\w+}", data.draw(own), page.path)
    # A rollback of the first champion is no approval, and would leave nothing to try.
    if path != "/models/rollback":
        if data.draw(st.booleans()):
            browser.post(path, data=fields)
        else:
            browser.post(API + path, json=fields, headers={"authorization": "Bearer pwc_anna"})
    state = model_registry(world.desk.source).state()
    assert [one.entry.by for one in state.history] == ["ben"]
    assert not any(one.approvals for one in state.proposals.values())
    assert read_rollouts(world.desk.source).events() == []


def test_a_rollout_is_planned_and_started_like_from_the_terminal(world: Registered, proposed: str) -> None:
    sections = [Models(world.desk).section()]
    anna, ben = (world.console.browser(sections, name) for name in NAMES)
    # Before it is approved the plan is there to be read, and has no button.
    page = anna.get("/rollout/plan", params={**PLAN, "candidate": proposed})
    assert "What each step could find" in page.text
    assert "this proposal has not the approvals that it needs" in page.text
    assert 'action="/rollout/start"' not in page.text
    view = plan_view(anna, "anna", **PLAN, candidate=proposed)
    forced = {**PLAN, "candidate": proposed, "plan": view["digest"], "why": "now", "passphrase": PASSPHRASE}
    forced = {name: value for name, value in forced.items() if name not in ("cards_a_day", "review", "decline")}
    answer = anna.post(f"{API}/rollout/start", json=forced, headers={"authorization": "Bearer pwc_anna"})
    assert answer.status_code == 409, answer.text
    assert "approv" in answer.json()["error"]
    form = {"proposal": proposed, "why": "w", "passphrase": PASSPHRASE}
    assert ben.post("/models/approve", data=form).status_code == 303
    sent = planned(anna, proposed)
    wrong = anna.post("/rollout/start", data={**sent, "why": "w", "passphrase": "x"})
    assert wrong.status_code == 403
    sent = planned(anna, proposed)
    done = anna.post("/rollout/start", data={**sent, "why": "a new pattern", "passphrase": PASSPHRASE})
    assert done.status_code == 303, done.text
    (event,) = read_rollouts(world.desk.source).events()
    assert (event.kind, event.by, event.why) == (EventKind.STARTED, "anna", "a new pattern")
    assert event.start is not None
    assert event.start.plan == plan_of([10, 50, 100], step_hours=(2.0, 24.0), margin=0.3)
    assert [entry.by for entry in world.console.audit.newest(20) if entry.act == "rollout_started"] == ["anna"]
    # Sent twice it is one rollout; and while it runs nobody plans another one.
    assert (
        anna.post("/rollout/start", data={**sent, "why": "a new pattern", "passphrase": PASSPHRASE}).status_code == 303
    )
    assert len(read_rollouts(world.desk.source).events()) == 1
    assert "has not ended: one runs at a time" in anna.get("/rollout/plan", params={"candidate": proposed}).text
    text = anna.get("/models").text
    assert f"Rollout {event.start.name}" in text


def test_a_plan_that_was_not_shown_starts_nothing(world: Registered, proposed: str) -> None:
    registry = model_registry(world.desk.source)
    owner, ben = (Signer(name, world.keys[name]) for name in NAMES)
    registry.approve(ben, proposed, why="w", now_ms=NOW_MS - 500)
    anna = world.console.browser([Models(world.desk).section()], "anna")
    rest = {"why": "w", "passphrase": PASSPHRASE}
    for changed in ({"margin": "5"}, {"shadow": "yes"}, {"steps": "50,100", "hours": "1"}, {"plan": "0" * 64}):
        sent = planned(anna, proposed) | changed
        refused = anna.post("/rollout/start", data={**sent, **rest})
        assert refused.status_code == 409, changed
        assert "not the plan that was shown" in refused.text
    # Another champion than the one on the page.
    sent = planned(anna, proposed)
    *_, other = registry.register(owner, None, policy_to_register(0.7), why="w", now_ms=NOW_MS - 400)
    registry.approve(ben, other.digest, why="w", now_ms=NOW_MS - 300)
    registry.promote(ben, other.digest, why="w", now_ms=NOW_MS - 200)
    assert anna.post("/rollout/start", data={**sent, **rest}).status_code == 409
    assert read_rollouts(world.desk.source).events() == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": "10, 50"}, "wanted 100 as the last one"),
        ({"steps": "10; 50"}, "wanted numbers with commas"),
        ({"hours": "1"}, "one for each step but the last"),
        ({"hours": "nan, 1"}, "wanted more than 0"),
        ({"margin": "0"}, "wanted above 0"),
        ({"tolerance": "0.9"}, "ollout tolerance: wanted 0 to below"),
        ({"alpha": "0.9"}, "ollout alpha: wanted above 0"),
    ],
)
def test_a_plan_that_cannot_be_says_why(world: Registered, proposed: str, changed: dict[str, str], words: str) -> None:
    anna = world.console.browser([Models(world.desk).section()], "anna")
    page = anna.get("/rollout/plan", params={**PLAN, "candidate": proposed, **changed})
    assert page.status_code == 200
    assert words in unescape(page.text)
    assert "What each step could find" not in page.text
    # The typed text is still there.
    for name, value in changed.items():
        assert re.search(rf'name="{name}"[^>]* value="{re.escape(value)}"', page.text)


def test_without_a_registry_the_pages_say_so_and_start_nothing(tmp_path: Path) -> None:
    console = console_under_test(tmp_path / "console")
    manifest_in(tmp_path / "model-1")
    desk = Desk(Source({"serve": {"bundle": str(tmp_path / "model-1")}}, {}), "")
    browser = console.browser([Models(desk).section()], "demo-model-owner")
    text = browser.get("/models").text
    assert "There is no registry here" in text
    assert '<strong class="mono">model-1</strong>' in text
    assert "There has been no rollout." in text
    assert "There is no registry: [models] people is not set" in browser.get("/rollout/plan").text
    form = {"candidate": "a" * 64, "plan": "b" * 64, "why": "w"}
    assert browser.post("/rollout/start", data=form).status_code == 409
    assert desk.happenings(0, NOW_MS) == []
    lead = console.browser([Models(desk).section()], "demo-lead")
    assert lead.get("/rollout/plan").status_code == 403
    console.database.close()


def test_nobody_signs_with_the_key_of_another_person(world: Registered) -> None:
    keys = Path(world.desk.keys)
    (keys / "ben.pem").write_bytes((keys / "anna.pem").read_bytes())
    ben = world.console.browser([Models(world.desk).section()], "ben")
    form = {"why": "w", "passphrase": PASSPHRASE}
    refused = ben.post("/models/approve", data={**form, "proposal": world.proposal})
    assert (refused.status_code, "somebody other than ben" in refused.text) == (403, True)


def test_a_rollout_that_has_ended_says_nothing_about_who_decides_now(tmp_path: Path) -> None:
    """After a promotion and a rollback the page said that the candidate had 100 % of the cards."""
    log, plan = SignedRollouts.at(tmp_path, begin_ms=NOW_MS - 1), plan_of([50, 100])
    log.start(plan, NOW_MS)
    log.take(RolloutEvent(EventKind.READY, NOW_MS + 1, "lead"))
    seen = judge(plan, 0, counts_of(80_000, step=0, plan=plan))
    log.take(RolloutEvent(EventKind.LOOKED, NOW_MS + 2, "lead", step=0, judgement=seen))
    console = console_under_test(tmp_path)
    desk = Desk(Source({"models": log.models}, {}), "")
    browser = console.browser([Models(desk).section()], "demo-model-owner")
    text = browser.get("/models").text
    assert "has 50 % of the cards" in text
    # No step waits for the highest one in a hundred, so it is neither within a margin nor beyond it.
    rows = re.findall(r'<span>(score \w+)<br>.*?data-name="Means"><span class="\w+">([^<]*)', text)
    assert dict(rows) == {"score upper": "within the margin", "score top": "watched for harm alone"}
    (tmp_path / "paywarden.toml").write_text(log.settings, encoding="utf-8")
    told = CliRunner().invoke(cli, ["--config", str(tmp_path / "paywarden.toml"), "rollout", "status"]).stdout
    assert re.search(r"score_upper +yes ", told)
    assert re.search(r"score_top +– ", told)
    log.take(RolloutEvent(EventKind.ABORTED, NOW_MS + 3, "anna", "enough"))
    text = browser.get("/models").text
    assert "Aborted by anna: enough." in text
    assert "has 50 % of the cards" not in text
    candidate = log.versions[1].bundle[:12]
    assert f"It compared the candidate <code>{candidate}</code> with the champion of that time" in text
    console.database.close()
