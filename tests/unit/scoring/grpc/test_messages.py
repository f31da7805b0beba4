from __future__ import annotations

import gzip
import zlib

import pytest

from paywarden.scoring.engine.batching.batcher import Refusal
from paywarden.scoring.grpc import messages as grpc_messages
from paywarden.scoring.grpc.messages import frame, parse_timeout_s, percent_encode, read_only_message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"40m", 0.04),
        (b"500u", 0.0005),
        (b"99999999n", 0.099999999),
        (b"0m", 0.0),
    ],
)
def test_a_timeout_is_digits_and_a_unit(value: bytes, seconds: float) -> None:
    assert parse_timeout_s(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", [b"", b"m", b"1", b"1s", b"123456789m", b"-1m", b"+1m", b"1.5S", b" 1m", b"1m ", b"1_0m", "1٣m".encode()]
)
def test_a_malformed_timeout_is_none(value: bytes) -> None:
    assert parse_timeout_s(value) is None


def test_a_status_message_keeps_printable_ascii_and_encodes_the_rest() -> None:
    assert percent_encode("ids: at most 256 bytes, is 300%\n – é") == (
        b"ids: at most 256 bytes, is 300%25%0A %E2%80%93 %C3%A9"
    )


def code_of(data: bytes, encoding: bytes = b"identity", bytes_max: int = 100) -> str:
    message = read_only_message(data, encoding, bytes_max)
    assert isinstance(message, Refusal), message
    return message.code


def test_a_message_is_what_its_head_announces() -> None:
    assert read_only_message(frame(b"abc"), b"identity", 3) == b"abc"
    assert read_only_message(frame(b""), b"identity", 3) == b""


def test_a_request_without_a_message_or_with_two_breaks_the_method() -> None:
    assert code_of(b"") == "unimplemented"
    assert code_of(frame(b"a") + frame(b"b")) == "unimplemented"


def test_a_request_that_ends_within_its_message_is_broken() -> None:
    for data in (b"\0", b"\0\0\0\0", frame(b"abc")[:-1]):
        assert code_of(data) == "internal"


def test_a_message_over_the_limit_is_refused_by_its_head_alone() -> None:
    assert code_of(b"\0" + (101).to_bytes(4, "big")) == "resource_exhausted"


@pytest.mark.parametrize(("encoding", "pack"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
class TestCompressed:
    def test_a_compressed_message_is_unpacked(self, encoding: bytes, pack: object) -> None:
        assert callable(pack)
        packed = b"\1" + frame(pack(b"abc"))[1:]
        assert read_only_message(packed, encoding, 100) == b"abc"

    def test_a_message_that_unpacks_beyond_the_limit_is_refused(self, encoding: bytes, pack: object) -> None:
        assert callable(pack)
        assert code_of(b"\1" + frame(pack(bytes(101)))[1:], encoding) == "resource_exhausted"
        assert read_only_message(b"\1" + frame(pack(bytes(100)))[1:], encoding, 100) == bytes(100)

    def test_a_compressed_message_that_is_cut_or_too_long_is_broken(self, encoding: bytes, pack: object) -> None:
        assert callable(pack)
        packed = pack(b"abc")
        for broken in (packed[:-1], b"garbage", packed + b"x", b""):
            assert code_of(b"\1" + frame(broken)[1:], encoding) == "internal"


def test_a_bomb_is_never_unpacked_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = zlib.decompressobj

    class Counted:
        def __init__(self, bits: int) -> None:
            self._inner = real(bits)

        def decompress(self, data: bytes, limit: int) -> bytes:
            out = self._inner.decompress(data, limit)
            made.append(len(out))
            return out

    monkeypatch.setattr("paywarden.scoring.grpc.messages.zlib.decompressobj", Counted)
    bomb = gzip.compress(bytes(10_000_000))
    assert code_of(b"\1" + frame(bomb)[1:], b"gzip", bytes_max=20_000) == "resource_exhausted"
    assert made == [20_001]


def test_a_compressed_message_needs_an_encoding_that_compresses() -> None:
    assert code_of(b"\1" + frame(b"abc")[1:]) == "internal"


def test_a_flag_that_means_nothing_is_broken() -> None:
    assert code_of(b"\2" + frame(b"abc")[1:], b"gzip") == "internal"


@pytest.mark.parametrize(
    ("content_type", "is_grpc"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;charset=utf-8", True),
        (b"Application/gRPC", True),
        (b"application/grpc+json", False),
        (b"application/grpcish", False),
        (b"application/json", False),
        (None, False),
    ],
)
def test_only_grpc_with_protobuf_is_taken(content_type: bytes | None, is_grpc: bool) -> None:
    assert grpc_messages.is_grpc(content_type) is is_grpc


def test_a_refusal_names_its_field_in_the_message_and_in_a_trailer() -> None:
    headers = dict(grpc_messages.refusal_headers(Refusal("invalid_argument", "must be from 0 to 9", "amount_minor")))
    assert headers[b"grpc-status"] == b"3"
    assert headers[b"grpc-message"] == b"amount_minor: must be from 0 to 9"
    assert headers[b"paywarden-field"] == b"amount_minor"


@pytest.mark.parametrize(
    ("code", "number"), [("already_exists", b"6"), ("unauthenticated", b"16"), ("unavailable", b"14"), ("new", b"2")]
)
def test_codes_are_grpcs_and_an_unknown_one_says_so(code: str, number: bytes) -> None:
    assert dict(grpc_messages.refusal_headers(Refusal(code, "no")))[b"grpc-status"] == number
