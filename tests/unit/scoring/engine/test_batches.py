"""A batch is decided whole or not at all, for any refusal of one of its payments."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.models.policy.policy import FLAGS, Policy, PolicySettings
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreBatchResponse, ScoreRequest, ScoreResponse
from paywarden.scoring.engine.batching.batcher import IN_PROGRESS, NOT_DECIDED, Chunk, Refusal, units_of
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions, _parts
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.idempotency import decision_cache
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheSettings
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxWriter, writer
from tests.oracles.claims import claim_all
from tests.worlds.endpoint.http_world import NOW_MS, Client, Reply, post_protobuf, serving
from tests.worlds.endpoint.payments import euro_intake, payments_of
from tests.worlds.small import small_world


class World:
    """A scorer with a decision cache and a real outbox, without a mirror; another worker's access to the cache."""

    def __init__(self, folder: Path, *, remembers: bool = True, **outbox: Any) -> None:
        self.where = replace(OutboxSettings(directory=str(folder / "outbox")), **outbox)
        answered = DecisionCacheSettings(path=str(folder / "answered"), payments_max=4000)
        decision_cache.prepare(answered)
        self.outbox = OutboxWriter(self.where, "worker-0")
        self.cache, self.other = DecisionCache(answered, self.where, 0), DecisionCache(answered, self.where, 1)
        engine, bundle = small_world.engine(), small_world.loaded_bundle()
        self.scorer = PaymentScorer(
            engine=engine,
            intake=euro_intake(),
            models=ModelChain((bundle,), metrics=ModelMetrics.declare(MetricsRegistry())),
            policy=Policy(PolicySettings(), review_at=bundle.manifest.review_at, decline_at=bundle.manifest.decline_at),
            mirror=MirrorSettings(path=str(folder / "mirror")),
            outbox=self.outbox,
            metrics=ScoringMetrics.declare(MetricsRegistry(), flags=FLAGS, entities=engine.plan.entity_names),
            options=ScorerOptions(answered=self.cache if remembers else None),
        )

    def recorded(self) -> dict[str, list[str]]:
        """Returns the ids of all decisions in the outbox, by payment."""
        found: dict[str, list[str]] = {}
        reader, position = OutboxReader(self.where, "worker-0"), 0
        while records := reader.read(position, 1000):
            position = records[-1][0]
            for _, payload in records:
                response = OutboxEntry.FromString(payload).response
                found.setdefault(response.payment_id, []).append(response.decision_id)
        assert reader.end() == position, "no part of a record"
        return found

    def score(self, requests: Sequence[ScoreRequest], batches: Sequence[range]) -> list[bytes | Refusal]:
        return [*self.scorer.score(Chunk([each.SerializeToString() for each in requests], batches), NOW_MS)]

    def close(self) -> None:
        self.cache.close()
        self.other.close()
        self.outbox.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def request(payment_id: str, amount_minor: int = 1) -> ScoreRequest:
    return ScoreRequest(
        payment_id=payment_id,
        event_time_ms=NOW_MS,
        card_id="c",
        merchant_id="m",
        amount_minor=amount_minor,
        currency="EUR",
    )


def numbered(count: int) -> list[ScoreRequest]:
    return [request(f"b{number}") for number in range(count)]


def codes(results: Sequence[bytes | Refusal]) -> list[str]:
    return [result.code if isinstance(result, Refusal) else "decided" for result in results]


def ask(client: Client, requests: Sequence[ScoreRequest]) -> Reply:
    return client.ask(post_protobuf(ScoreBatchRequest(requests=requests), path="/v1/score:batch"))


def decisions_of(reply: Reply) -> dict[str, str]:
    assert reply.status == 200, reply.body
    return {each.payment_id: each.decision_id for each in ScoreBatchResponse.FromString(reply.body).responses}


@pytest.mark.parametrize(("size", "place"), [(2, 0), (20, 9), (200, 137)])
def test_a_wrong_payment_refuses_its_batch_and_nothing_of_it_is_decided(world: World, size: int, place: int) -> None:
    batch = numbered(size)
    batch[place] = request(f"b{place}", amount_minor=-1)
    with serving(scorer=world.scorer, limits=RequestLimits()) as served, served.connected() as client:
        # Others of the same chunk are decided: they have come in one read.
        beside = [post_protobuf(request(f"beside-{number}")) for number in range(2)]
        client.send(beside[0] + post_protobuf(ScoreBatchRequest(requests=batch), path="/v1/score:batch") + beside[1])
        before, refused, after = (client.reply() for _ in range(3))
        assert [before.status, refused.status, after.status] == [200, 400, 200]
        assert refused.error["field"] == f"requests[{place}].amount_minor"
        assert set(world.recorded()) == {"beside-0", "beside-1"}
        batch[place] = request(f"b{place}")
        answered = decisions_of(ask(client, batch))
    assert {name: [decision] for name, decision in answered.items()}.items() <= world.recorded().items()


def test_a_batch_with_a_payment_that_another_worker_decides_waits_whole(world: World) -> None:
    (slot,) = claim_all(world.other, payments_of([request("b70")], euro_intake(), NOW_MS))
    assert isinstance(slot, int)
    results = world.score([request("before"), *numbered(130), request("after")], [range(1, 131)])
    assert results[71] is IN_PROGRESS
    assert set(results[1:71] + results[72:131]) == {NOT_DECIDED}
    assert set(world.recorded()) == {"before", "after"}
    # The other worker may decide every payment of the batch meanwhile.
    claims = claim_all(world.other, payments_of(numbered(70), euro_intake(), NOW_MS))
    assert all(isinstance(claim, int) for claim in claims)
    world.other.release([slot, *(claim for claim in claims if isinstance(claim, int))])
    assert codes(world.score(numbered(130), [range(130)])) == ["decided"] * 130
    assert all(len(decisions) == 1 for decisions in world.recorded().values())


def test_an_id_twice_in_a_batch_for_different_payments_refuses_all_of_it(world: World) -> None:
    batch = [*numbered(100), request("b3", amount_minor=2)]
    results = world.score([*batch, request("b5")], [range(101)])
    assert isinstance(results[100], Refusal)
    assert results[100].code == "already_exists"
    assert set(results[:100]) == {NOT_DECIDED}
    # The payment alone is one of the batch again.
    assert results[101] is IN_PROGRESS
    assert world.recorded() == {}


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_whatever_conflicts_a_batch_is_recorded_whole_or_not_at_all(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=8))
    ids = st.sampled_from("abcdefgh")
    requests = [request(data.draw(ids), amount_minor=data.draw(st.integers(1, 2))) for _ in range(sum(sizes))]
    held = claim_all(world.other, payments_of([request(data.draw(ids))], euro_intake(), NOW_MS))
    batches, place = [], 0
    for size in sizes:
        if size > 1 or data.draw(st.booleans()):
            batches.append(range(place, place + size))
        place += size
    results = world.score(requests, batches)
    recorded = world.recorded()
    for unit in units_of(len(requests), batches):
        answers = [results[index] for index in unit]
        if all(isinstance(answer, bytes) for answer in answers):
            for answer in answers:
                response = ScoreResponse.FromString(bytes(answer))  # type: ignore[arg-type]
                assert recorded[response.payment_id] == [response.decision_id]
        else:
            assert not any(isinstance(answer, bytes) for answer in answers)
            assert sum(answer is not NOT_DECIDED for answer in answers) == 1
    answered = {ScoreResponse.FromString(answer).payment_id for answer in results if isinstance(answer, bytes)}
    assert set(recorded) == answered
    # No claim is left behind: once the other worker gives its own back, every payment can be decided.
    world.other.release([claim for claim in held if isinstance(claim, int)])
    again = world.score([request(each) for each in "abcdefgh" if each not in recorded], ())
    assert all(isinstance(answer, bytes) for answer in again)
    world.close()


class FullDisk:
    """Stands for `os.write`: the file behind a descriptor takes this number of bytes, and the rest is cut off."""

    def __init__(self, fd: int, size_max: int) -> None:
        self._fd, self._size_max, self._write = fd, size_max, os.write

    def __call__(self, fd: int, data: bytes) -> int:
        if fd != self._fd:
            return self._write(fd, data)
        room = self._size_max - os.fstat(fd).st_size
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(fd, data[:room])


def test_a_write_that_was_cut_short_is_refused_and_its_first_decisions_hold(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The companion may have shipped them, so a repetition gets them, as after `kill -9`."""
    second = [request(f"second-{number}") for number in range(200)]
    with serving(scorer=world.scorer, limits=RequestLimits()) as served, served.connected() as client:
        decided = decisions_of(ask(client, numbered(3)))
        # Room for some 70 of the 200 records.
        monkeypatch.setattr(os, "write", FullDisk(world.outbox._fd, world.outbox.position + 30_000))
        refused = ask(client, second)
        assert (refused.status, refused.error["code"]) == (503, "unavailable")
        monkeypatch.undo()
        recorded = world.recorded()
        first = recorded.keys() - decided.keys()
        assert 0 < len(first) < 200
        again = decisions_of(ask(client, [one for one in second if one.payment_id in first]))
        assert {payment_id: [one] for payment_id, one in (decided | again).items()} == recorded
        # Nothing follows in this process.
        assert ask(client, second).status == 503
        assert world.outbox.must_end()


def test_a_segment_that_cannot_be_begun_refuses_a_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, segment_bytes=30_000)
    with serving(scorer=world.scorer, limits=RequestLimits()) as served, served.connected() as client:
        decided = decisions_of(ask(client, numbered(20)))

        def failing(*_: object) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(writer, "_open_segment", failing)
        refused = ask(client, [request(f"second-{number}") for number in range(200)])
        assert (refused.status, refused.error["code"]) == (503, "unavailable")
    assert set(world.recorded()) == set(decided)
    world.close()


def test_a_bug_about_one_payment_of_a_batch_decides_none_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batcher asks again about what a bug has spoilt: alone, but never a part of a batch."""
    fill = world.scorer._fill

    def failing(chunk: Chunk, status: int) -> int:
        if request("b80").SerializeToString() in chunk.bodies:
            raise ValueError("a bug")
        return fill(chunk, status)

    monkeypatch.setattr(world.scorer, "_fill", failing)
    with serving(scorer=world.scorer, limits=RequestLimits()) as served, served.connected() as client:
        assert ask(client, numbered(100)).status == 500
    assert world.recorded() == {}


@given(st.lists(st.integers(1, 3 * ROWS_MAX), max_size=8), st.data())
def test_parts_keep_batches_whole_and_are_no_larger_than_they_must_be(sizes: list[int], data: st.DataObject) -> None:
    batches, count = [], 0
    for size in sizes:
        count += data.draw(st.integers(0, 2 * ROWS_MAX))
        batches.append(range(count, count + size))
        count += size
    count += data.draw(st.integers(0, 2 * ROWS_MAX))
    parts = [*_parts(count, batches)]
    assert [place for part in parts for place in part] == [*range(count)]
    for part in parts:
        assert len(part) <= ROWS_MAX or part in batches
    for batch in batches:
        assert any(part.start <= batch.start and batch.stop <= part.stop for part in parts)
