"""A prepared bundle and policy decide like their originals, to the bit, even if the originals change or vanish."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.models.bundle.bundle import Bundle, golden_payments
from paywarden.models.bundle.prepared_bundle import _paged, load_prepared, prepare_bundle
from paywarden.models.policy import mapped_list
from paywarden.models.policy.mapped_list import MappedList
from paywarden.models.policy.policy import ConfiguredRule, ConfiguredSegment, Facts, Policy, PolicySettings
from paywarden.models.policy.prepared_policy import PreparedPolicy, load_policy, prepare_policy
from paywarden.schemas.errors import BundleRefused, Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from tests.services.product.processes import run_program
from tests.worlds.small import small_cascade, small_world

DIGEST = small_world.engine().plan.digest


def prepared(bundle: Path, folder: Path, catalogue_digest: str = DIGEST) -> Path:
    folder.mkdir()
    prepare_bundle(
        bundle,
        folder,
        catalogue_digest=catalogue_digest,
        identity_digest="",
        trusted=None,
        build_missing=lambda *_: False,
    )
    return folder


@pytest.mark.parametrize("kind", ["one model", "cascade"])
def test_a_prepared_bundle_scores_and_explains_as_the_bundle_does(tmp_path: Path, kind: str) -> None:
    original: Bundle = small_world.loaded_bundle() if kind == "one model" else small_cascade.loaded()
    source = small_world.trained_bundle() if kind == "one model" else small_world.cascade_bundle()
    copy = tmp_path / "bundle"
    shutil.copytree(source, copy)
    folder = prepared(copy, tmp_path / "ready")
    shutil.rmtree(copy)
    loaded = load_prepared(folder)
    assert (loaded.digest, loaded.bundle.manifest) == (original.manifest.digest, original.manifest)
    assert loaded.bundle.predictor.native == original.predictor.native
    rows = golden_payments(source)
    assert loaded.bundle.score(rows).tolist() == original.score(rows).tolist()
    for row in rows[:20]:
        assert loaded.bundle.explainer.reasons(row, 4) == original.explainer.reasons(row, 4)


def test_a_closed_bundle_leaves_no_library_behind_and_can_be_loaded_again(tmp_path: Path) -> None:
    folder = prepared(small_world.trained_bundle(), tmp_path / "ready")

    def libraries() -> set[str]:
        """Returns the inodes of mapped copies of libraries; other tests have loaded some."""
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        return {line.split()[4] for line in lines if "memfd:model.so" in line}

    before = libraries()
    for _ in range(3):
        loaded = load_prepared(folder).bundle
        assert len(libraries() - before) == int(loaded.predictor.native)
        loaded.close()
        assert libraries() == before
    with pytest.raises(AssertionError, match="unloaded"):
        loaded.predictor.margins(np.zeros((1, len(loaded.manifest.feature_names)), dtype=np.float32))


def test_what_is_written_to_an_array_is_not_written_to_its_file(tmp_path: Path) -> None:
    folder = prepared(small_world.trained_bundle(), tmp_path / "ready")
    before = {path: path.read_bytes() for path in folder.rglob("*.npy")}
    changes = _paged(folder / "large.changes.npy")
    changes += 1.0
    assert {path: path.read_bytes() for path in before} == before


def test_files_that_are_cut_short_harm_no_process_that_has_loaded_them(tmp_path: Path) -> None:
    """Its workers were killed (SIGBUS), and so was each that was started in their place."""
    program = """
import os, sys
from pathlib import Path
from paywarden.models.bundle.bundle import golden_payments
from paywarden.models.bundle.prepared_bundle import load_prepared
folder = Path(sys.argv[1])
loaded, rows = load_prepared(folder).bundle, golden_payments(folder / "bundle")
before = loaded.score(rows).tolist(), [loaded.explainer.reasons(row, 4) for row in rows]
for path in folder.rglob("*"):
    if path.is_file():
        content = path.read_bytes()
        os.truncate(path, 0)
        path.write_bytes(bytes(len(content) // 2))
assert (loaded.score(rows).tolist(), [loaded.explainer.reasons(row, 4) for row in rows]) == before
print("well")
"""
    folder = prepared(small_world.trained_bundle(), tmp_path / "ready")
    done = run_program(program, str(folder))
    assert (done.returncode, done.stdout.strip()) == (0, "well"), done.stderr


@pytest.mark.parametrize(
    "damage", ["large.margins.npy", "large.nodes.npy", "prepared.json", "bundle/native/*/model.so"]
)
def test_a_prepared_bundle_that_is_gone_or_damaged_is_refused(tmp_path: Path, damage: str) -> None:
    folder = prepared(small_world.trained_bundle(), tmp_path / "ready")
    for path in folder.glob(damage):
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BundleRefused, match="prepared bundle"):
        load_prepared(folder)
    shutil.rmtree(folder)
    with pytest.raises(BundleRefused, match="gone or damaged"):
        load_prepared(folder)


@pytest.mark.parametrize("damage", ["large.nodes.npy", "large.sets.npy", "large.vectors.npy", "prepared.json"])
def test_a_prepared_bundle_with_one_other_bit_is_refused(tmp_path: Path, damage: str) -> None:
    """Compiled code follows the nodes of trees: with other ones it would end the process."""
    folder = prepared(small_world.trained_bundle(), tmp_path / "ready")
    data = bytearray((folder / damage).read_bytes())
    # A digit of a number is another digit.
    at = data.rindex(b"intercept") + len(b'intercept": -0.1') if damage == "prepared.json" else len(data) // 2 | 1
    data[at] ^= 1
    (folder / damage).write_bytes(data)
    with pytest.raises(BundleRefused, match="damaged"):
        load_prepared(folder)


def test_a_machine_that_gives_golden_vectors_another_score_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is whole then, and a processor does sums in another way."""
    folder = prepared(small_world.trained_bundle(), tmp_path / "ready")
    kind = type(load_prepared(folder).bundle.predictor)
    right = kind.margins
    monkeypatch.setattr(kind, "margins", lambda self, rows: np.nextafter(right(self, rows), np.inf))
    with pytest.raises(BundleRefused, match="golden vectors get another score"):
        load_prepared(folder)


def test_what_the_check_refuses_is_named_by_the_bundles_own_path(tmp_path: Path) -> None:
    copy = small_world.copied_bundle(tmp_path)
    with pytest.raises(BundleRefused, match=f"bundle {copy}: it was trained with the feature catalogue"):
        prepared(copy, tmp_path / "one", "0123")
    (copy / "model.txt").write_bytes(b"tree")
    with pytest.raises(BundleRefused, match=f"bundle {copy}: model.txt has a wrong checksum"):
        prepared(copy, tmp_path / "two")


@pytest.mark.parametrize("mapped_from", [1, 10_000])
def test_a_prepared_policy_decides_as_the_policy_and_shares_its_lists(
    tmp_path: Path, mapped_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_list, "MAPPED_FROM", mapped_from)
    settings = PolicySettings(
        on_mirror_stale="review",
        rules=(ConfiguredRule("known", "card_id in lists.good", "approve", override=True),),
        segments=(ConfiguredSegment("large", "amount > 5000", 0.1, 0.2),),
        lists={"good": ("@file",)},
    )
    lists = {"good": frozenset({"c-1", "ä"})}
    policy = Policy(settings, review_at=0.3, decline_at=0.9, lists=lists)
    prepare_policy(policy, tmp_path, review_at=0.3, decline_at=0.9)
    loaded = load_policy(tmp_path, CATALOGUE)
    assert (loaded.digest, loaded.policy.lists) == (policy.digest, lists)
    assert isinstance(loaded.policy.lists["good"], MappedList) == (mapped_from == 1)
    assert loaded.policy.digest == policy.digest
    vector = np.zeros(len(CATALOGUE.features), dtype=np.float32)
    for card in ("c-1", "c-2"):
        for amount in (1000, 6000):
            for score in (0.15, 0.25, 0.95, None):
                for flags in ((), ("mirror_stale",)):
                    payment = ScoreRequest(card_id=card, merchant_id="m", amount_minor=amount, currency="EUR")
                    facts = Facts(payment, amount, vector, score, flags)
                    assert loaded.policy.decide(facts) == policy.decide(facts)
    assert load_policy(tmp_path, CATALOGUE, loaded).policy.lists is loaded.policy.lists
    assert load_policy(tmp_path, CATALOGUE, loaded).policy is loaded.policy
    looser = PreparedPolicy.of(Policy(settings, review_at=0.4, decline_at=0.9, lists=lists))
    # Another bundle's thresholds make another policy.
    assert load_policy(tmp_path, CATALOGUE, looser).policy.thresholds == (0.3, 0.9)
    other = Policy(settings, review_at=0.3, decline_at=0.9, lists={"good": frozenset({"c-9"})})
    assert load_policy(tmp_path, CATALOGUE, PreparedPolicy.of(other)).policy.lists == lists
    whole = (tmp_path / "policy.json").read_text(encoding="utf-8")
    (tmp_path / "policy.json").write_text(whole.replace('"review_at": 0.3', '"review_at": 0.8'), encoding="utf-8")
    with pytest.raises(Misconfigured, match="checksum is wrong"):
        load_policy(tmp_path, CATALOGUE)
    (tmp_path / "policy.json").write_text("{", encoding="utf-8")
    with pytest.raises(Misconfigured, match="gone or damaged"):
        load_policy(tmp_path, CATALOGUE)
