"""`paywarden rollout`: each command on a log, and what is refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paywarden.models.registry import entries as kinds
from paywarden.models.registry.artefacts import BUNDLES, POLICIES
from paywarden.models.registry.model_log import LogFile
from paywarden.models.rollout.rollout import EventKind, RolloutEvent
from paywarden.ops.cli import cli
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, read_deployment
from tests.worlds.rollout.registry import Writer, digest, people_file
from tests.worlds.rollout.signed_rollouts import SignedRollouts


@pytest.fixture
def world(tmp_path: Path) -> SignedRollouts:
    return SignedRollouts.at(tmp_path, begin_ms=now_ms() - 3_600_000)


def run(folder: Path, *arguments: str, settings: str = "") -> Result:
    config = folder / "paywarden.toml"
    config.write_text(settings, encoding="utf-8")
    return CliRunner().invoke(cli, ["--config", str(config), "rollout", *arguments], standalone_mode=False)


def act(world: SignedRollouts, *arguments: str, settings: str = "") -> Result:
    return run(world.path.parent.parent, *arguments, settings=settings + world.settings)


def start(world: SignedRollouts, *more: str, settings: str = "") -> Result:
    return act(world, "start", "--candidate", "new", "--why", "a test", *more, settings=settings)


def refused(result: Result) -> str:
    assert isinstance(result.exception, Misconfigured), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_a_rollout_from_start_to_abort(world: SignedRollouts, tmp_path: Path) -> None:
    assert act(world, "status").output == "there has been no rollout\n"
    began = start(world, "--name", "r-1", "--cards-a-day", "200000", "--event-share", "decline=0.02")
    assert "step 5 %, 6 hours: decline x 2.02; goes on after 6 hours" in began.output
    assert "r-1: pending, started by anna: a test" in began.output
    # The candidate may be named by the folder of its bundle as well.
    assert "r-1 runs already" in refused(start(world, "--candidate", str(tmp_path / "new")))
    # The lead writes it when a host has loaded the candidate.
    world.take(RolloutEvent(EventKind.READY, now_ms(), "lead"))
    shown = json.loads(act(world, "status", "--json").output)["rollout"]
    assert (shown["phase"], shown["share"], len(shown["salt"])) == ("running", 0.01, 32)
    assert act(world, "pause", "--why", "a look at it").output.startswith("r-1: paused at 1 %, paused by anna")
    assert act(world, "resume", "--why", "go on").exit_code == 0
    early = refused(act(world, "promote", "--why", "now"))
    assert early == "rollout not promoted: r-1: running at 1 %: wanted one that has reached all cards"
    ben = ("--key", str(tmp_path / "ben.pem"))
    assert "r-1: aborted, aborted by ben: enough" in act(world, "abort", "--why", "enough", *ben).output
    page = tmp_path / "report.html"
    assert act(world, "status", "--report", str(page)).exit_code == 0
    assert "aborted by ben: enough" in page.read_text(encoding="utf-8")
    assert start(world, "--name", "r-2").exit_code == 0


def test_a_rollout_in_the_shadow_waits_for_a_person_before_its_first_card(
    world: SignedRollouts, tmp_path: Path
) -> None:
    assert "r-1: pending in the shadow, started by anna" in start(world, "--name", "r-1", "--shadow").output
    shown = json.loads(act(world, "status", "--json").output)["rollout"]
    assert (shown["phase"], shown["in_shadow"], shown["share"]) == ("pending", True, 0)
    page = tmp_path / "report.html"
    assert act(world, "status", "--report", str(page)).exit_code == 0
    assert "in the shadow" in page.read_text(encoding="utf-8")
    resumed = act(world, "resume", "--why", "it agrees", "--key", str(tmp_path / "ben.pem")).output
    assert resumed.startswith("r-1: pending, out of the shadow by ben: it agrees")


def test_an_abort_reaches_a_scoring_host_without_leader_and_without_kafka(
    world: SignedRollouts, tmp_path: Path
) -> None:
    runtime = tmp_path / "serve"
    settings = f'[serve]\nruntime = "{runtime}"\n[kafka]\nbootstrap = "127.0.0.1:1"\n'
    assert start(world, "--name", "r-1", settings=settings).exit_code == 0
    assert not runtime.exists(), "a machine without the folder is no scoring host"
    runtime.mkdir(mode=0o700)
    world.take(RolloutEvent(EventKind.READY, now_ms(), "lead"))
    assert act(world, "pause", "--why", "a look at it", settings=settings).exit_code == 0
    running = read_deployment(runtime / DEPLOYMENT)
    assert running is not None
    assert (running.rollout, running.share, running.candidate is None) == ("r-1", 100, False)
    assert act(world, "abort", "--why", "enough", settings=settings).exit_code == 0
    found = read_deployment(runtime / DEPLOYMENT)
    assert found is not None
    assert (found.active, found.candidate, found.share) == (running.active, None, 0)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ("", ("--candidate", "old"), "'old' was promoted already; to let it decide again, register it again"),
        ("", ("--candidate", "gone"), "there is no open proposal 'gone'"),
        ("steps = [5, 1, 100]", (), "steps: wanted each above the one before, got 1 % after 5 %"),
        ("steps = [1, 500]", (), "steps: wanted shares above 0 and at most 100 percent"),
        ('segments = ["FR"]', (), "rollout segments: wanted FIELD=VALUE"),
        ("alpha = 2.0", (), "rollout alpha: wanted above 0 and below 0.5, got 2"),
        ("", ("--event-share", "decline=0.1"), "--event-share: wanted --cards-a-day too"),
        ("", ("--cards-a-day", "9", "--event-share", "lines=1"), "--event-share: there is no measure 'lines'"),
        ("", ("--cards-a-day", "9", "--event-share", "decline=x"), "--event-share decline: wanted a number"),
        ("", ("--cards-a-day", "9"), "--cards-a-day: wanted --event-share too, such as decline=0.02"),
        ("", ("--cards-a-day", "-1", "--event-share", "decline=0.1"), "cards a day: wanted more than 0, got -1"),
        ("", ("--name", "Über"), "--name: wanted at most 64 of a to z"),
        ("", ("--why", " "), "--why: wanted 1 to 500 bytes of printable text"),
    ],
)
def test_a_wrong_start_is_one_line_and_writes_nothing(
    world: SignedRollouts, settings: str, more: tuple[str, ...], message: str
) -> None:
    before = world.path.read_bytes()
    assert message in refused(start(world, *more, settings=f"[rollout]\n{settings}\n"))
    assert world.path.read_bytes() == before


def test_the_people_sign_and_the_candidate_is_a_proposal(tmp_path: Path) -> None:
    people = people_file(tmp_path, {"anna": ("propose", "rollout"), "ben": ("promote", "approve")})
    (tmp_path / "anna.pem").rename(tmp_path / "mine.pem")
    writer, file = Writer(now_ms=now_ms() - 3_600_000), LogFile(tmp_path / "log.jsonl")
    writer.add(kinds.PROMOTED, "ben", proposal=writer.proposal("old").digest)
    candidate = writer.proposal("new")
    writer.add(kinds.APPROVED, "ben", proposal=candidate.digest)
    file.append(lambda _: writer.log.entries)
    settings = f'[models]\nfolder = "{tmp_path}"\npeople = "{people}"\nkey_file = "{tmp_path}/mine.pem"\n'
    bundle, policy = (
        tmp_path / kind / digest(f"{one} new") for kind, one in ((BUNDLES, "bundle"), (POLICIES, "policy"))
    )
    named = ("start", "--candidate", candidate.digest[:12], "--name", "r-1", "--why", "a test")
    for folder in (bundle, policy):
        gone = refused(run(tmp_path, *named, settings=settings))
        assert gone == f"{folder}: manifest.json was registered and cannot be read: No such file or directory"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("new", encoding="utf-8")
    (bundle / "manifest.json").write_text("another", encoding="utf-8")
    assert "manifest.json was changed after it was registered" in refused(run(tmp_path, *named, settings=settings))
    (bundle / "manifest.json").write_text("new", encoding="utf-8")
    assert len(file.read().entries) == len(writer.log.entries)
    assert run(tmp_path, *named, "--dry-run", settings=settings).exit_code == 0
    assert len(file.read().entries) == len(writer.log.entries)
    assert "r-1: pending, started by anna: a test" in run(tmp_path, *named, settings=settings).output
    (bundle / "manifest.json").rename(tmp_path / "away")
    resumed = refused(run(tmp_path, "resume", "--why", "a test", settings=settings))
    assert resumed == gone.replace(str(policy), str(bundle))
    (tmp_path / "away").rename(bundle / "manifest.json")
    assert "r-1 is pending" in refused(run(tmp_path, "resume", "--why", "a test", settings=settings))
    keys = ("--key", str(tmp_path / "ben.pem"))
    assert "ben lacks the role rollout" in refused(run(tmp_path, "abort", "--why", "x", *keys, settings=settings))
    assert "aborted by anna: enough" in run(tmp_path, "abort", "--why", "enough", settings=settings).output
    page = tmp_path / "report.html"
    assert run(tmp_path, "status", "--report", str(page), settings=settings).exit_code == 0
    _, _, approvals = page.read_text(encoding="utf-8").partition("Who approved the candidate")
    found = re.findall(r"<td[^>]*>(anna|ben|registered bundle|registered policy|proposed|approved)</td>", approvals)
    assert found[:8] == [
        "anna",
        "registered bundle",
        "anna",
        "registered policy",
        "anna",
        "proposed",
        "ben",
        "approved",
    ]
    state = json.loads(run(tmp_path, "status", "--json", settings=settings).output)["rollout"]
    assert (state["phase"], state["candidate"]["bundle"]) == ("aborted", digest("bundle new"))
    assert [entry.kind for entry in file.read().entries[-2:]] == [kinds.ROLLOUT_STARTED, kinds.ROLLOUT_ABORTED]


def test_without_a_registry_every_command_says_what_is_missing(tmp_path: Path) -> None:
    for arguments in (("status",), ("abort", "--why", "x"), ("start", "--candidate", "x", "--why", "x")):
        assert "[models] people: wanted the file of names" in refused(run(tmp_path, *arguments))


def test_without_a_rollout_nothing_can_be_done_to_it(world: SignedRollouts, tmp_path: Path) -> None:
    for name in ("pause", "resume", "abort", "promote"):
        assert "there is no rollout" in refused(act(world, name, "--why", "x"))
    assert "there has been no rollout" in refused(act(world, "status", "--report", str(tmp_path / "page.html")))
