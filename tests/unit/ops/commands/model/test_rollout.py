"""`paywarden rollout`: each command on a log in a file, and what is refused in one line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paywarden.models.bundle.bundle import FORMAT, MANIFEST, Manifest
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.artefacts import BUNDLES, POLICIES
from paywarden.models.registry.log import LogFile
from paywarden.models.rollout.log import FileRolloutLog, RolloutKeeper
from paywarden.models.rollout.rollout import EventKind, RolloutEvent
from paywarden.ops.cli import cli
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.server.deployment.deployment_file import (
    DEPLOYMENT,
    Deployment,
    ReleasePaths,
    read_deployment,
    write_deployment,
)
from paywarden.streams.kafka import admin
from paywarden.streams.rollouts import topic
from tests.worlds.rollout.registry import Writer, digest, people_file


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests, which are all that a rollout reads of a bundle."""
    folder = tmp_path_factory.mktemp("bundles")
    old = Manifest(
        format=FORMAT, model_version="b-1", catalogue_digest="1" * 16, feature_names=[], importance_gain=[],
        importance_split=[], train_from="2026-01-01", train_to="2026-02-01", training_payments=1, training_frauds=0,
        parameters={}, validation={}, calibration_slope=1.0, calibration_intercept=0.0, review_at=0.1, decline_at=0.5,
        metrics={}, reliability=[], score_edges=[], score_counts=[], files={},
    )  # fmt: skip
    new, other = replace(old, model_version="b-2"), replace(old, catalogue_digest="0" * 16)
    for name, manifest in (("old", old), ("new", new), ("other", other)):
        (folder / name).mkdir()
        (folder / name / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return folder


def run(folder: Path, *arguments: str, settings: str = "") -> Result:
    config = folder / "paywarden.toml"
    config.write_text(f'[rollout]\nlog = "{folder}/rollouts.jsonl"\n{settings}', encoding="utf-8")
    return CliRunner().invoke(cli, ["--config", str(config), "rollout", *arguments], standalone_mode=False)


def start(folder: Path, bundles: Path, *more: str, candidate: str = "new", settings: str = "") -> Result:
    arguments = ["start", "--champion", str(bundles / "old"), "--candidate", str(bundles / candidate)]
    return run(folder, *arguments, "--why", "a test", "--by", "ann", *more, settings=settings)


def refused(result: Result) -> str:
    assert isinstance(result.exception, Misconfigured), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_a_rollout_from_start_to_abort(tmp_path: Path, bundles: Path) -> None:
    assert run(tmp_path, "status").output == "there has been no rollout\n"
    began = start(tmp_path, bundles, "--name", "r-1", "--cards-a-day", "200000", "--event-share", "decline=0.02")
    assert "step 5 %, 6 hours: decline x 2.02; goes on after 6 hours" in began.output
    assert "r-1: pending, started by ann: a test" in began.output
    assert "r-1 runs already" in refused(start(tmp_path, bundles))
    # The status that a host writes when it has loaded the candidate.
    keeper = RolloutKeeper(FileRolloutLog(tmp_path / "rollouts.jsonl"))
    keeper.take(RolloutEvent(EventKind.READY, now_ms(), "host"))
    shown = json.loads(run(tmp_path, "status", "--json").output)["rollout"]
    assert (shown["phase"], shown["share"], len(shown["salt"])) == ("running", 0.01, 32)
    assert run(tmp_path, "pause", "--why", "a look at it").output.startswith("r-1: paused at 1 %, paused by ")
    assert run(tmp_path, "resume", "--why", "go on").exit_code == 0
    early = refused(run(tmp_path, "promote", "--why", "now"))
    assert early == "rollout not promoted: r-1: running at 1 %: wanted one that has reached all cards"
    assert "r-1: aborted, aborted by ben: enough" in run(tmp_path, "abort", "--why", "enough", "--by", "ben").output
    page = tmp_path / "report.html"
    assert run(tmp_path, "status", "--report", str(page)).exit_code == 0
    assert "aborted by ben: enough" in page.read_text(encoding="utf-8")
    assert start(tmp_path, bundles, "--name", "r-2").exit_code == 0


def test_a_rollout_in_the_shadow_waits_for_a_person_before_its_first_card(tmp_path: Path, bundles: Path) -> None:
    assert "r-1: pending in the shadow, started by ann" in start(tmp_path, bundles, "--name", "r-1", "--shadow").output
    shown = json.loads(run(tmp_path, "status", "--json").output)["rollout"]
    assert (shown["phase"], shown["in_shadow"], shown["orders"]["share"]) == ("pending", True, 0)
    page = tmp_path / "report.html"
    assert run(tmp_path, "status", "--report", str(page)).exit_code == 0
    assert "in the shadow" in page.read_text(encoding="utf-8")
    resumed = run(tmp_path, "resume", "--why", "it agrees", "--by", "ben").output
    assert resumed.startswith("r-1: pending, out of the shadow by ben: it agrees")


def test_an_abort_reaches_a_host_that_takes_part_without_leader_and_without_kafka(
    tmp_path: Path, bundles: Path
) -> None:
    settings = f'[serve]\nruntime = "{tmp_path}"\n[kafka]\nbootstrap = "127.0.0.1:1"\n'
    start(tmp_path, bundles, "--name", "r-1", settings=settings)
    path, old, new = tmp_path / DEPLOYMENT, ReleasePaths(str(bundles / "old")), ReleasePaths(str(bundles / "new"))
    other = Deployment(old, candidate=new, rollout="another", share=100, salt="00" * 16)
    write_deployment(path, other)
    run(tmp_path, "abort", "--why", "enough", settings=settings)
    assert read_deployment(path) == other, "this host takes part in another rollout"
    start(tmp_path, bundles, "--name", "r-2", settings=settings)
    write_deployment(path, replace(other, rollout="r-2"))
    assert run(tmp_path, "abort", "--why", "enough", settings=settings).exit_code == 0
    found = read_deployment(path)
    assert found is not None
    assert (found.active.bundle, found.candidate, found.share) == (str(bundles / "old"), None, 0)


@pytest.mark.parametrize(
    ("candidate", "settings", "more", "message"),
    [
        ("old", "", (), "rollout not started: candidate and champion are the same, with digest"),
        ("gone", "", (), "gone: there is no manifest.json"),
        ("other", "", (), "other is for the feature catalogue 0000000000000000; the champion's is"),
        ("new", "steps = [5, 1, 100]", (), "steps: wanted each above the one before, got 1 % after 5 %"),
        ("new", "steps = [1, 500]", (), "steps: wanted shares above 0 and at most 100 percent"),
        ("new", 'segments = ["FR"]', (), "rollout segments: wanted FIELD=VALUE"),
        ("new", "alpha = 2.0", (), "rollout alpha: wanted above 0 and below 0.5, got 2"),
        ("new", "", ("--event-share", "decline=0.1"), "--event-share: wanted --cards-a-day too"),
        ("new", "", ("--cards-a-day", "9", "--event-share", "lines=1"), "--event-share: there is no measure 'lines'"),
        ("new", "", ("--cards-a-day", "9", "--event-share", "decline=x"), "--event-share decline: wanted a number"),
        ("new", "", ("--cards-a-day", "9"), "--cards-a-day: wanted --event-share too, such as decline=0.02"),
        ("new", "", ("--cards-a-day", "-1", "--event-share", "decline=0.1"), "cards a day: wanted more than 0, got -1"),
        ("old", "", ("--champion-policy", "a" * 64), "rollout not started: candidate and champion are the same"),
        ("old", "", ("--candidate-policy", "A1"), "--candidate-policy: wanted the digest of a policy, 64 hex digits"),
        ("new", "", ("--name", "Über"), "--name: wanted at most 64 of a to z"),
        ("new", "", ("--why", " "), "--why: wanted 1 to 500 bytes of printable text"),
        ("new", "", ("--by", "a\nb"), "--by: wanted 1 to 500 bytes of printable text"),
    ],
)
def test_a_wrong_start_is_one_line_and_writes_nothing(
    tmp_path: Path, bundles: Path, candidate: str, settings: str, more: tuple[str, ...], message: str
) -> None:
    assert message in refused(start(tmp_path, bundles, *more, candidate=candidate, settings=settings))
    assert not (tmp_path / "rollouts.jsonl").exists()


def test_publishing_sends_the_events_of_the_log(tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(admin, "require_broker", lambda _: None)

    def send(_: object, __: object, events: list[RolloutEvent], ___: object) -> int:
        sent.append(len(events))
        return 1

    monkeypatch.setattr(topic, "publish", send)
    start(tmp_path, bundles)
    assert run(tmp_path, "publish").output == "published 1 of 1 events\n"
    assert sent == [1]


def test_with_a_registry_the_people_sign_and_the_candidate_is_a_proposal(tmp_path: Path, bundles: Path) -> None:
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
    told = refused(run(tmp_path, *named, "--champion", str(bundles / "old"), settings=settings))
    assert told == "--champion, --champion-policy, --candidate-policy: the log of the registry has them"
    for folder in (bundle, policy):
        gone = refused(run(tmp_path, *named, settings=settings))
        assert gone == f"{folder}: manifest.json was registered and cannot be read: No such file or directory"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("new", encoding="utf-8")
    (bundle / "manifest.json").write_text("another", encoding="utf-8")
    assert "manifest.json was changed after it was registered" in refused(run(tmp_path, *named, settings=settings))
    (bundle / "manifest.json").write_text("new", encoding="utf-8")
    assert len(file.read().entries) == len(writer.log.entries)
    assert "--by: the key is that of anna, got 'eve'" in refused(
        run(tmp_path, *named, "--by", "eve", settings=settings)
    )
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
    assert (state["phase"], state["candidate"]["bundle_digest"]) == ("aborted", digest("bundle new"))
    assert [entry.kind for entry in file.read().entries[-2:]] == [kinds.ROLLOUT_STARTED, kinds.ROLLOUT_ABORTED]
    assert not (tmp_path / "rollouts.jsonl").exists()
    assert "set [models] people" in refused(run(tmp_path, "abort", "--why", "x", *keys))


def test_without_a_rollout_nothing_can_be_done_to_it(tmp_path: Path) -> None:
    for name in ("pause", "resume", "abort", "promote"):
        assert "there is no rollout" in refused(run(tmp_path, name, "--why", "x", "--by", "ann"))
    assert "there has been no rollout" in refused(run(tmp_path, "status", "--report", str(tmp_path / "page.html")))
