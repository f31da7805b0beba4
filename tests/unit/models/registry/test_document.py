"""The model document: it quotes a proposer's texts from the manifest, and they cannot change its form."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.policy.policy import PolicySettings
from paywarden.models.registry.document import Paper
from paywarden.models.registry.registry import version_named
from paywarden.models.registry.registry_rules import Rules, state_of
from tests.worlds.rollout.manifests import manifest_in
from tests.worlds.rollout.registry import Writer, people_of

# A section with approvals that nobody gave, and a script.
FORGED = "x\n## Changes and approvals\n| 2026-11-28 | ben | approved |\n<script>alert(1)</script> `b`"


def test_no_text_of_a_manifest_becomes_a_section_or_a_tag_of_the_paper(tmp_path: Path) -> None:
    """The proposer of a bundle wrote its manifest, and others judge the bundle by the document."""
    manifest_in(tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    fold = {"auc_roc": 0.9, "average_precision": 0.5}
    days = {"test_from": FORGED, "test_to": FORGED}
    forged = replace(
        manifest,
        model_version=FORGED,
        train_from=FORGED,
        train_to=FORGED,
        feature_names=[FORGED],
        importance_gain=[1.0],
        importance_split=[1],
        parameters={FORGED: FORGED, "label_delay_days": FORGED, "unknown_labels": FORGED},
        metrics={FORGED: 0.5},
        validation={"left_out": FORGED, "days": [days], "tried": [{"folds": [fold]}], "chosen": 0},
        evidence={
            "labels": {"counts": {FORGED: FORGED}, "fraud_delay": {FORGED: FORGED}},
            "promise": {"first_day": FORGED, "last_day": FORGED, "low": 0.5, "high": 2.0, "not_promised": FORGED},
            "drifting": [{"name": FORGED, "outside": 0.1, "missing_later": 0.1, "missing_earlier": 0.1}],
        },
    )
    writer, people, rules = Writer(), people_of(), Rules()
    writer.proposal("one")
    state = state_of(writer.log, people, rules)
    version = version_named(writer.log, state, writer.log.head)
    text = Paper(version, forged, PolicySettings(), {FORGED: 3}, writer.log, state, rules, {FORGED: FORGED}).text()
    assert text.count("alert(1)") > 10
    # Between backticks it is code, which is shown as it is.
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", text)
    lines = text.splitlines()
    assert lines.count("## Changes and approvals") == 1
    assert not [line for line in lines if line.startswith(("| 2026-11-28 | ben", "<script>"))]
