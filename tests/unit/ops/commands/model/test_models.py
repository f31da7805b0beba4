"""`paywarden models`, from a key to a champion and back, and each refusal in one line."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.bundle.compiler import compiler_name
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.models.registry.artefacts import bundle_files, checksums_of
from paywarden.models.registry.entries import CLOCK_SET
from paywarden.models.registry.model_log import LogFile
from paywarden.models.registry.registry_settings import ModelRegistrySettings
from paywarden.ops import wiring
from paywarden.ops.cli import cli
from paywarden.ops.times import now_ms, spoken
from paywarden.schemas.errors import Misconfigured, PaywardenError, RegistryRefused
from paywarden.schemas.settings import read_source
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, read_deployment
from paywarden.streams.kafka import admin
from tests.services.missing_tools import COMPILER
from tests.worlds.operate.backup_page import run_copies
from tests.worlds.rollout.registry import Writer, people_file
from tests.worlds.small import small_world

# How long a command that needs Kafka waits for it here, longer than any busy machine takes for one that does not.
REACH_S = 60.0
needs_compiler = pytest.mark.skipif(compiler_name() is None, reason=COMPILER.reason)
ROLES = {
    "anna": ("propose",),
    "ben": ("approve", "propose"),
    "cleo": ("approve",),
    "dora": ("promote", "roll_back", "admin"),
}


class Desk:
    """A registry in a folder, and people who type commands there."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder = folder
        people = people_file(folder, ROLES)
        self.config = folder / "paywarden.toml"
        self.config.write_text(
            f'[serve]\nruntime = "{folder / "serve"}"\n'
            f'[models]\nfolder = "{folder / "registry"}"\npeople = "{people}"\napprovals = 2\n{more}',
            "utf-8",
        )

    @property
    def log(self) -> Path:
        return self.folder / "registry" / "log.jsonl"

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--config", str(self.config), "models", *arguments], standalone_mode=False)

    def told(self, *arguments: str, by: str = "") -> Any:
        """The JSON of a command that worked."""
        signing = ("--key", str(self.folder / f"{by}.pem"), "--why", "a test") if by else ()
        result = self.run(*arguments, *signing, "--json")
        assert result.exception is None, result.exception
        return json.loads(result.stdout)

    def refusal(self, *arguments: str, by: str = "") -> str:
        """The line of a command that failed; nothing was written."""
        before = self.log.read_bytes() if self.log.exists() else None
        signing = ("--key", str(self.folder / f"{by}.pem"), "--why", "a test") if by else ()
        result = self.run(*arguments, *signing)
        assert isinstance(result.exception, PaywardenError), result.exception
        assert (self.log.read_bytes() if self.log.exists() else None) == before
        assert "\n" not in str(result.exception)
        return str(result.exception)

    def promoted(self, bundle: Path) -> dict[str, Any]:
        """Take a bundle all the way; returns its version."""
        proposal = self.told("register", str(bundle), by="anna")["proposal"]["proposal"]
        for approver in ("ben", "cleo"):
            self.told("approve", proposal, by=approver)
        champion: dict[str, Any] = self.told("promote", proposal, by="dora")["champion"]
        return champion


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_bundle_goes_from_a_proposal_to_the_champion_and_back(desk: Desk) -> None:
    bundle, other = small_world.trained_bundle(), small_world.other_bundle()
    told = desk.told("register", str(bundle), by="anna")
    assert [entry["kind"] for entry in told["entries"]] == ["registered_bundle", "registered_policy", "proposed"]
    assert told["proposal"]["bundle"] == read_manifest(bundle).digest
    assert told["proposal"]["policy"] == policy_digest(PolicySettings(), {})
    version = read_manifest(bundle).model_version
    assert "anna lacks the role approve" in desk.refusal("approve", version, by="anna")
    approved = desk.told("approve", version, by="ben")["proposal"]
    assert (approved["approved_by"], approved["registered_by"]) == (["ben"], "anna")
    libraries = {name: checksum for name, checksum in checksums_of(bundle_files(bundle)).items() if ".so" in name}
    assert approved["libraries"] == libraries
    assert "ben has approved it already" in desk.refusal("approve", version, by="ben")
    assert "it needs the approval of 2, ben approved it" in desk.refusal("promote", version, by="dora")
    pem = str(desk.folder / "cleo.pem")
    lines = desk.run("approve", told["proposal"]["bundle"][:6], "--key", pem, "--why", "read").stdout.splitlines()
    assert lines[1:-1] == [f"{name} of anna: sha256 {checksum}" for name, checksum in libraries.items()]
    before = now_ms() - 1
    first = desk.told("promote", version, by="dora")["champion"]
    assert "was promoted already" in desk.refusal("promote", version, by="dora")
    assert "there is no version to go back to" in desk.refusal("rollback", by="dora")

    second = desk.promoted(other)
    assert second["policy"] == first["policy"]
    listed = desk.told("list", "--log")
    assert (listed["champion"], listed["previous"], listed["proposals"]) == (second, first, [])
    assert len(listed["entries"]) == 6 + 5
    assert desk.told("rollback", by="dora")["champion"] == first
    assert desk.told("list")["champion"] == first
    assert desk.told("list", "--at", "2026-01-01")["champion"] is None
    assert desk.told("list")["since_ms"] >= before

    # A worker asks for the folder and the file that were registered, checked.
    source = read_source(str(desk.config), {})
    served = wiring.model_registry(source).served(now_ms())
    assert served is not None
    assert read_manifest(served.bundle).digest == first["bundle"]
    policy = read_source(str(served.policy), {}).section("policy", PolicySettings)
    assert policy_digest(policy, {}) == first["policy"]
    assert desk.told("verify")["problems"] == []


def test_a_policy_alone_is_proposed_for_the_champions_bundle(desk: Desk) -> None:
    policy = desk.folder / "strict.toml"
    policy.write_text('[policy]\non_mirror_stale = "review"\n', "utf-8")
    assert "there is no champion whose bundle" in desk.refusal("register", "--policy", str(policy), by="anna")
    champion = desk.promoted(small_world.trained_bundle())
    told = desk.told("register", "--policy", str(policy), by="anna")
    assert [entry["kind"] for entry in told["entries"]] == ["registered_policy", "proposed"]
    assert told["proposal"]["bundle"] == champion["bundle"]
    assert told["proposal"]["policy"] != champion["policy"]
    assert "is proposed already" in desk.refusal("register", "--policy", str(policy), by="ben")
    policy.write_text('[[policy.rules]]\nname = "x"\nwhen = "amont > 3"\naction = "review"\n', "utf-8")
    assert "amont" in desk.refusal("register", "--policy", str(policy), by="anna")


def test_who_proposes_cannot_approve(desk: Desk) -> None:
    told = desk.told("register", str(small_world.trained_bundle()), by="ben")
    proposal = told["proposal"]["proposal"]
    assert desk.refusal("approve", proposal, by="ben") == (
        "approved by ben is refused: ben proposed or registered it, and cannot approve it"
    )
    assert "there is no open proposal 'ffffff'" in desk.refusal("approve", "ffffff", by="cleo")


def test_a_key_that_was_revoked_signs_nothing_and_approves_nothing(desk: Desk) -> None:
    proposal = desk.told("register", str(small_world.trained_bundle()), by="anna")["proposal"]["proposal"]
    for approver in ("ben", "cleo"):
        entry = desk.told("approve", proposal, by=approver)["entries"][0]
    desk.told("key", "--revoke", entry["key"], by="dora")
    assert "it needs the approval of 2, ben approved it" in desk.refusal("promote", proposal, by="dora")
    assert "of cleo was revoked" in desk.refusal("approve", proposal, by="cleo")


@needs_compiler
def test_a_bundle_without_the_processors_of_the_hosts_is_not_registered(tmp_path: Path) -> None:
    desk = Desk(tmp_path, f'processors = ["{platform.machine()}", "riscv64"]\n')
    assert "it has no library for riscv64" in desk.refusal("register", str(small_world.trained_bundle()), by="anna")
    bundle = small_world.copied_bundle(tmp_path)
    (bundle / "native" / platform.machine()).rename(bundle / "native" / "riscv64")
    other = Desk(tmp_path)
    assert f"it has no library for {platform.machine()} (it has riscv64)" in other.refusal(
        "register", str(bundle), by="anna"
    )


def test_an_unsigned_bundle_is_not_registered_where_keys_are_trusted(tmp_path: Path) -> None:
    pem = tmp_path / "release.pub.pem"
    key = Desk(tmp_path).told("key", "release", "--out", str(tmp_path / "release.pem"))["key"]
    pem.write_text(f"-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n", "utf-8")
    desk = Desk(tmp_path, f'[bundles]\ntrusted_keys = ["{pem}"]\n')
    assert "it is not signed" in desk.refusal("register", str(small_world.trained_bundle()), by="anna")


def test_keys_of_nobody_and_keys_open_to_others_sign_nothing(desk: Desk) -> None:
    bundle = str(small_world.trained_bundle())
    desk.told("key", "eve", "--out", str(desk.folder / "eve.pem"))
    assert "belongs to nobody in the file of people" in desk.refusal("register", bundle, by="eve")
    (desk.folder / "anna.pem").chmod(0o644)
    assert "can be read by others (mode 644)" in desk.refusal("register", bundle, by="anna")
    assert "cannot read the key" in desk.refusal("register", bundle, by="nobody")
    assert "[models] key_file: wanted the PEM file" in desk.refusal("rollback", "--why", "x")


def test_verify_finds_changed_files_a_damaged_log_and_a_lost_head(desk: Desk) -> None:
    champion = desk.promoted(small_world.trained_bundle())
    head = desk.told("verify")["head"]
    stored = desk.folder / "registry" / "bundles" / champion["bundle"] / "model.txt"
    content = stored.read_bytes()
    stored.write_bytes(content + b"\n")
    problems = desk.run("verify")
    assert problems.exit_code == 1
    assert "model.txt was changed after it was registered" in problems.stderr
    source = read_source(str(desk.config), {})
    with pytest.raises(RegistryRefused, match=r"model.txt was changed"):
        wiring.model_registry(source).served(now_ms())
    stored.write_bytes(content)

    *lines, _ = desk.log.read_bytes().splitlines(keepends=True)
    desk.log.write_bytes(b"".join(lines))
    assert f"lacks the remembered head {head}" in desk.run("verify").stderr
    # A person who can cut the log can cut this file as well.
    desk.log.with_name(f"{desk.log.name}.head").unlink()
    assert desk.told("verify")["problems"] == []
    assert f"lacks the remembered head {head}" in desk.run("verify", "--head", head).stderr
    desk.log.write_bytes(b"".join(lines[1:]))
    assert "line 1 does not fit the line before it" in desk.run("verify").stderr
    assert "line 1 does not fit the line before it" in desk.refusal("rollback", by="dora")


def test_a_clock_that_was_ahead_is_set_by_an_admin(desk: Desk) -> None:
    ahead = now_ms() + 86_400_000
    LogFile(desk.log).append(lambda log: [Writer(log).entry(CLOCK_SET, "dora", time_ms=ahead)])
    bundle = str(small_world.trained_bundle())
    assert f"by dora is of {spoken(ahead)} UTC: a clock jumped" in desk.run("list").stdout
    assert [entry["by"] for entry in desk.told("list")["ahead"]] == ["dora"]
    assert "anna lacks the role admin" in desk.refusal("sync", "--set-clock", by="anna")
    # Nobody but dora waits for that.
    proposal = desk.told("register", bundle, by="anna")["proposal"]["proposal"]
    for approver in ("ben", "cleo"):
        desk.told("approve", proposal, by=approver)
    assert "older than an entry before it" in desk.refusal("promote", proposal, by="dora")
    desk.told("sync", "--set-clock", by="dora")
    desk.told("promote", proposal, by="dora")


@needs_compiler
def test_a_library_that_is_added_later_is_not_served(desk: Desk) -> None:
    champion = desk.promoted(small_world.trained_bundle())
    added = desk.folder / "registry" / "bundles" / champion["bundle"] / "native" / "other" / "model.so"
    added.parent.mkdir()
    added.write_bytes(b"code")
    assert "was added after the bundle was registered" in desk.run("verify").stderr


def test_lists_for_people_name_versions_and_people(desk: Desk) -> None:
    desk.promoted(small_world.trained_bundle())
    desk.told("register", str(small_world.other_bundle()), by="anna")
    listed = desk.run("list").stdout
    assert "champion  " in listed
    assert "by dora" in listed
    assert "nobody: 0 of 2 approvals" in listed
    log = desk.run("list", "--log").stdout.splitlines()
    assert len(log) == 8
    assert "promoted" in log[5]
    assert ": a test" in log[5]
    said = desk.run("list", "--at", "2100-01-01").stdout
    assert "promoted by dora: a test" in said
    assert "nothing was promoted" in desk.run("list", "--at", "2026-01-01").stdout
    assert "--at: wanted a time such as" in desk.refusal("list", "--at", "yesterday")


@pytest.mark.parametrize("part", ["bundle", "policy"])
def test_files_under_the_digest_of_another_bundle_or_policy_do_not_decide(desk: Desk, part: str) -> None:
    """A person who registers could name the digest that people know, but other files."""
    source = read_source(str(desk.config), {})
    good, other = small_world.trained_bundle(), small_world.other_bundle()
    facts = wiring.bundle_facts(source, good)
    policy = wiring.policy_facts(source, source, (0.1, 0.9))
    if part == "bundle":
        facts = replace(facts, files=bundle_files(other))
    else:
        policy = replace(policy, text='[policy]\non_model_absent = "approve"\n')
    registry = wiring.model_registry(source)
    signer = wiring.signer(source, str(desk.folder / "anna.pem"), registry)
    proposal = registry.register(signer, facts, policy, why="looks right", now_ms=now_ms())[-1].digest
    for approver in ("ben", "cleo"):
        desk.told("approve", proposal, by=approver)
    assert f"the {part} that was registered as" in desk.refusal("promote", proposal, by="dora")


def test_a_rollback_does_not_wait_for_kafka(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    first = desk.promoted(small_world.trained_bundle())
    desk.promoted(small_world.other_bundle())
    # Nothing listens on this port.
    desk.config.write_text(
        desk.config.read_text("utf-8") + 'topic = true\n[kafka]\nbootstrap = "127.0.0.1:1"\n', "utf-8"
    )
    monkeypatch.setattr(admin, "REACH_TIMEOUT_S", 0.1)
    assert "no Kafka broker answers" in desk.refusal("register", str(small_world.trained_bundle()), by="anna")
    result = desk.run("rollback", "--key", str(desk.folder / "dora.pem"), "--why", "declines doubled")
    assert result.exit_code == 0
    assert "again" in result.stdout
    assert "only this host knows it until `paywarden models sync` has sent it: no Kafka broker" in result.stderr
    assert desk.told("list")["champion"] == first


def test_a_key_is_revoked_without_kafka(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    proposal = desk.told("register", str(small_world.trained_bundle()), by="anna")
    config = desk.config.read_text("utf-8")
    desk.config.write_text(f'{config}topic = true\n[kafka]\nbootstrap = "127.0.0.1:1"\n', "utf-8")
    monkeypatch.setattr(admin, "REACH_TIMEOUT_S", 0.1)
    key = proposal["entries"][0]["key"]
    assert desk.run("key", "--revoke", key, "--key", str(desk.folder / "dora.pem"), "--why", "stolen").exit_code == 0
    assert desk.told("list")["proposals"] == []


def test_a_rollback_on_a_scoring_host_has_switched_it_and_returns_while_kafka_hangs(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = desk.promoted(small_world.trained_bundle())
    desk.promoted(small_world.other_bundle())
    runtime = desk.folder / "serve"
    runtime.mkdir()
    monkeypatch.setattr(admin, "REACH_TIMEOUT_S", REACH_S)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        bootstrap = f"127.0.0.1:{mute.getsockname()[1]}"
        desk.config.write_text(
            desk.config.read_text("utf-8") + f'topic = true\n[kafka]\nbootstrap = "{bootstrap}"\n', "utf-8"
        )
        began = time.monotonic()
        result = desk.run("rollback", "--key", str(desk.folder / "dora.pem"), "--why", "declines doubled")
        assert time.monotonic() - began < REACH_S, "it has waited for Kafka"
    assert result.exit_code == 0
    assert "again" in result.stdout
    assert "this host goes by it already; Kafka has not confirmed it" in result.stderr
    deployed = read_deployment(runtime / DEPLOYMENT)
    assert deployed is not None
    assert deployed.active.bundle_digest == first["bundle"]


def test_the_paper_of_a_model_says_who_agreed_and_what_overrides_it(desk: Desk) -> None:
    assert "nothing was promoted: name a version" in desk.refusal("document")
    first = desk.promoted(small_world.trained_bundle())
    rules = desk.folder / "rules.toml"
    rules.write_text(
        '[policy]\nreview_at = 0.05\n[[policy.rules]]\nname = "own_shops"\naction = "approve"\noverride = true\n'
        "when = 'merchant_id in lists.own or amount < 100'\n[policy.lists]\nown = [\"merchant-0002\"]\n",
        "utf-8",
    )
    second = desk.told("register", "--policy", str(rules), by="anna")["proposal"]
    for approver in ("ben", "cleo"):
        desk.told("approve", second["proposal"], by=approver)
    desk.told("promote", second["proposal"], by="dora")
    desk.told("rollback", by="dora")
    paper = desk.run("document", second["policy"]).stdout
    assert "| status | it does not decide |" in paper
    assert "- The rule `own_shops` decides alone: approve when `merchant_id in lists.own or amount < 100`." in paper
    assert "The policy sets `review_at` to 0.05" in paper
    assert " UTC: dora rolled this version back alone: a test." in paper
    assert paper.count("| ben | approved | a test |") == 1
    manifest = read_manifest(small_world.trained_bundle())
    assert f"| frauds | {manifest.training_frauds} (" in paper
    low, high = manifest.evidence["auc_roc_interval"]
    assert low < manifest.metrics["auc_roc"] < high
    assert re.search(rf"\| auc roc \| 0\.[0-9]+ \| {low:.4f} to {high:.4f} \|", paper)
    # The file equals the output, each time; without a name the command takes the champion.
    told = desk.told("document", second["policy"], "--out", str(desk.folder / "paper.md"))
    assert (desk.folder / "paper.md").read_text("utf-8") == paper
    assert told["sha256"] == hashlib.sha256(paper.encode()).hexdigest()
    assert f"| version | `{first['version']}` |" in desk.told("document")["text"]
    assert "there is no version 'ffffff'" in desk.refusal("document", "ffffff")


def test_settings_that_cannot_be_right_are_refused_by_name() -> None:
    for changed, told in (
        ({"approvals": -1}, r"\[models\] approvals: wanted at least 0, got -1"),
        ({"name": "a b"}, r"\[models\] name: wanted letters"),
        ({"approval_days": 0}, "approval_days: wanted at least 1"),
    ):
        with pytest.raises(Misconfigured, match=told):
            ModelRegistrySettings(**changed)
    with pytest.raises(Misconfigured, match=r"\[models\] log: wanted the file"):
        ModelRegistrySettings(folder="s3://bucket/models").log_path  # noqa: B018


def test_a_registry_that_was_destroyed_goes_on_from_its_copy(desk: Desk, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    first = desk.promoted(small_world.trained_bundle())
    run_copies("registry", tmp_path, copy, back=False)
    head, log = desk.told("verify")["head"], desk.log.read_bytes()

    shutil.rmtree(desk.log.parent)
    run_copies("registry", tmp_path, copy, back=True)
    assert desk.log.read_bytes() == log
    assert desk.told("verify", "--head", head)["problems"] == []
    second = desk.promoted(small_world.other_bundle())
    assert second["bundle"] != first["bundle"]
    newer = desk.told("verify")["head"]

    # The noted head reveals an old copy.
    shutil.rmtree(desk.log.parent)
    run_copies("registry", tmp_path, copy, back=True)
    assert f"lacks the remembered head {newer}" in desk.run("verify", "--head", newer).stderr
