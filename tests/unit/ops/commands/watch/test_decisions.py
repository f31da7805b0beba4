"""`paywarden decisions explain` decides again from what the decision holds, and says whether it is the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.models.bundle.bundle import Manifest, golden_payments
from paywarden.models.policy.policy import Policy, PolicySettings
from paywarden.ops.cli import cli
from paywarden.ops.recomputation import decide_again, outcome_of
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from paywarden.streams.companion.shipping import decision_of
from tests.worlds.small import small_world

SETTINGS = PolicySettings(review_at=0.02)


@cache
def manifest() -> Manifest:
    return small_world.loaded_bundle().manifest


@cache
def policy() -> Policy:
    return Policy(SETTINGS, review_at=manifest().review_at, decline_at=manifest().decline_at)


def entry(payment_id: str, row: int = 0, **more: Any) -> OutboxEntry:
    """Returns the record that a worker writes about a golden payment."""
    bundle, vector = small_world.loaded_bundle(), golden_payments(small_world.trained_bundle())[row]
    request = ScoreRequest(
        payment_id=payment_id,
        event_time_ms=1_700_000_000_000,
        card_id="c",
        merchant_id="m",
        amount_minor=100,
        currency="EUR",
    )
    made = OutboxEntry(
        request=request,
        decided_time_ms=1_700_000_000_100,
        vector=vector.tobytes(),
        catalogue_digest=manifest().catalogue_digest,
        bundle_digest=bytes.fromhex(manifest().digest),
        policy_digest=bytes.fromhex(policy().digest),
        response=ScoreResponse(payment_id=payment_id, decision_id=f"d-{payment_id}", action="approve"),
    )
    again = decide_again(decision_of(made), bundle, policy(), small_world.rates())
    made.response.score, made.response.action = again.score, again.action
    made.response.reasons.extend(again.reasons)
    made.response.model_version = manifest().model_version
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A host's folder: five decisions in its outbox."""
    made = tmp_path_factory.mktemp("decisions")
    strictest = int(np.argmax(small_world.loaded_bundle().score(golden_payments(small_world.trained_bundle()))))
    other = entry("changed", strictest)
    other.response.score = float(np.nextafter(other.response.score, 1.0))
    foreign = entry("foreign", bundle_digest=b"\1" * 32)
    writer = OutboxWriter(OutboxSettings(directory=str(made / "outbox")), "worker-0")
    for one in (entry("same"), entry("declined", strictest), other, foreign, entry("short", vector=b"1234")):
        writer.append(one.SerializeToString())
    old = entry("old")
    for name in ("bundle_digest", "policy_digest"):
        old.ClearField(name)
    writer.append(old.SerializeToString())
    writer.close()
    (made / "paywarden.toml").write_text(
        f'[serve]\nbundle = "{small_world.trained_bundle()}"\nruntime = "{made / "serve"}"\n'
        f'[outbox]\ndirectory = "{made / "outbox"}"\n[policy]\nreview_at = 0.02\n',
        encoding="utf-8",
    )
    yield made
    shutil.rmtree(made)


def explained(folder: Path, *arguments: str) -> tuple[Result, dict[str, Any]]:
    config = str(folder / "paywarden.toml")
    done = CliRunner().invoke(cli, ["--config", config, "decisions", "explain", *arguments, "--json"])
    (told,) = json.loads(done.stdout)["decisions"]
    return done, told


@pytest.mark.parametrize(
    ("payment_id", "why"),
    [
        ("changed", "not the same: score"),
        ("foreign", f"there is no bundle of digest {'01' * 32}"),
        ("short", "the vector was not kept: wanted"),
        ("old", "the decision names no policy"),
    ],
)
def test_what_differs_or_is_missing_is_said(folder: Path, payment_id: str, why: str) -> None:
    done, told = explained(folder, payment_id)
    assert (done.exit_code, told["equal"]) == (1, False)
    assert told["why"].startswith(why)


def test_another_policy_is_not_taken_for_it_and_one_in_a_folder_is_found(folder: Path, tmp_path: Path) -> None:
    text = (folder / "paywarden.toml").read_text(encoding="utf-8")
    (tmp_path / "paywarden.toml").write_text(text.replace("review_at = 0.02", "review_at = 0.03"), encoding="utf-8")
    assert explained(tmp_path, "same")[1]["why"].startswith(f"there is no policy of digest {policy().digest}")
    (tmp_path / "one.toml").write_text("[policy]\nreview_at = 0.02\n", encoding="utf-8")
    assert explained(tmp_path, "same", "--policies", str(tmp_path))[1]["equal"]


def test_in_words_it_says_what_decided(folder: Path) -> None:
    config = str(folder / "paywarden.toml")
    done = CliRunner().invoke(cli, ["--config", config, "decisions", "explain", "declined"])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "decision d-declined, 2023-11-14 22:13:20 UTC"
    assert lines[1] == f"  model    {manifest().model_version}, bundle {manifest().digest}"
    assert lines[-1] == "  equal to the bit"
    missing = CliRunner().invoke(cli, ["--config", config, "decisions", "explain", "nobody"])
    assert missing.exit_code == 1
    assert "there is no decision about payment nobody in the outboxes of this host" in missing.stderr


@settings(max_examples=60, deadline=None)
@given(
    row=st.integers(0, 10**6),
    flags=st.lists(st.sampled_from(["unknown_card", "mirror_stale", "mirror_absent"]), unique=True, max_size=3),
    amount=st.integers(0, 10**9),
    scored=st.booleans(),
)
def test_whatever_was_decided_is_decided_again_the_same(row: int, flags: list[str], amount: int, scored: bool) -> None:
    rows = golden_payments(small_world.trained_bundle())
    decision = decision_of(entry("p", row % len(rows)))
    decision |= {"flags": flags if scored else [*flags, "model_absent"], "amount_minor": amount}
    bundle = small_world.loaded_bundle() if scored else None
    first = decide_again(decision, bundle, policy(), small_world.rates())
    decision |= {"score": first.score, "action": first.action, "reasons": first.reasons}
    assert outcome_of(decision).is_equal(decide_again(decision, bundle, policy(), small_world.rates()))
    if scored:
        assert first.score == small_world.loaded_bundle().score(rows[row % len(rows)].reshape(1, -1))[0]
