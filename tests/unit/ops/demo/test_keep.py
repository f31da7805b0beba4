"""What a demonstration that is kept running sends."""

from __future__ import annotations

from itertools import islice

from paywarden.ops.demo.keep import SHIFTED_CHANNEL, SHIFTED_SHARE, SHIFTED_TIMES, repeated
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest


def test_payments_are_sent_again_with_new_ids_and_a_share_of_them_shifted() -> None:
    requests = [ScoreRequest(payment_id=f"live-{n}", amount_minor=100, channel="ecom") for n in range(100)]
    again = list(islice(repeated(requests, is_over=lambda: False), 300))
    assert len({request.payment_id for request in [*requests, *again]}) == 400
    shifted = [request for request in again if request.channel == SHIFTED_CHANNEL]
    assert len(shifted) == 300 * SHIFTED_SHARE
    assert {request.amount_minor for request in shifted} == {100 * SHIFTED_TIMES}
    assert {request.amount_minor for request in again if request.channel == "ecom"} == {100}


def test_nothing_more_is_sent_once_it_is_over() -> None:
    assert list(repeated([ScoreRequest(payment_id="live-1")], is_over=lambda: True)) == []
