"""What a demonstration that is kept running sends."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import yaml

from paywarden.models.drift.detectors import LENGTHS_MS
from paywarden.ops.demo.keep import (
    SHIFTED_CHANNEL,
    SHIFTED_SHARE,
    SHIFTED_TIMES,
    _prometheus,
    repeated,
    shift_time_ms,
)
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest


def test_payments_are_sent_again_with_new_ids_and_a_share_of_them_shifted() -> None:
    requests = [ScoreRequest(payment_id=f"live-{n}", amount_minor=100, channel="ecom") for n in range(100)]
    again = list(islice(repeated(requests, is_over=lambda: False, is_shifted=lambda: True), 300))
    assert len({request.payment_id for request in [*requests, *again]}) == 400
    shifted = [request for request in again if request.channel == SHIFTED_CHANNEL]
    assert len(shifted) == 300 * SHIFTED_SHARE
    assert {request.amount_minor for request in shifted} == {100 * SHIFTED_TIMES}
    assert {request.amount_minor for request in again if request.channel == "ecom"} == {100}


def test_nothing_more_is_sent_once_it_is_over() -> None:
    assert list(repeated([ScoreRequest(payment_id="live-1")], is_over=lambda: True, is_shifted=lambda: True)) == []


def test_before_the_shift_payments_are_usual_ones() -> None:
    """The page of an alert had nothing to compare with: the first block of drift detection was shifted already."""
    requests = [ScoreRequest(payment_id=f"live-{n}", amount_minor=100, channel="ecom") for n in range(100)]
    shifted = iter([*[False] * 40, *[True] * 200])
    again = list(islice(repeated(requests, is_over=lambda: False, is_shifted=lambda: next(shifted)), 200))
    assert {request.channel for request in again[:100]} == {"ecom"}
    assert sum(request.channel == SHIFTED_CHANNEL for request in again[100:]) == 40


@pytest.mark.parametrize("since_block_ms", [0, 1, 200_000, 270_000, 270_001, 299_999])
def test_the_shift_begins_with_a_block_and_after_usual_payments(since_block_ms: int) -> None:
    now = 7_000_000 * LENGTHS_MS[0] + since_block_ms
    shift = shift_time_ms(now)
    assert shift % LENGTHS_MS[0] == 0
    assert 30_000 <= shift - now < 30_000 + LENGTHS_MS[0]


def test_prometheus_gets_a_job_for_each_process(tmp_path: Path) -> None:
    text = _prometheus({"serve": "http://127.0.0.1:1", "stream": "http://127.0.0.1:2"}, [tmp_path / "alerts.yml"])
    read = yaml.safe_load(text)
    assert read["rule_files"] == [str(tmp_path / "alerts.yml")]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in read["scrape_configs"]}
    assert jobs == {"serve": ["127.0.0.1:1"], "stream": ["127.0.0.1:2"]}
