"""The protobuf request of a deployment: protoc accepts the file, and the class is the one protoc would make."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.fields import Payment
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from paywarden.schemas.proto import scoring_pb2
from paywarden.schemas.request_proto import field_rows, proto_text, request_class, request_file

PAYMENT = Payment(
    fields.flag("is_gift", 64, personal=True),
    fields.text("customer_id", 1, required=True, personal=True),
    fields.category("product", 2, [f"kind {number} */" for number in range(20)]),
    fields.decimal("weight", 3, unit="kg // of goods", least=-5, most=500),
    fields.email("message", 4),
    fields.money("optional", 5),
    fields.integer("items", 6, unit="items"),
)


def compiled(text: str) -> FileDescriptorProto:
    """Returns what protoc makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "paywarden/schemas/proto/scoring.proto"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        out = Path(folder) / "out"
        assert protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={out}", str(path)]) == 0
        return FileDescriptorSet.FromString(out.read_bytes()).file[0]


def without_json_names(file: FileDescriptorProto) -> FileDescriptorProto:
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")
    return file


def descriptor(declared: PaymentFields) -> FileDescriptorProto:
    file = FileDescriptorProto()
    request_file(declared).CopyToProto(file)
    return without_json_names(file)


@pytest.mark.parametrize("declared", [TABLE_ALONE, PAYMENT.fields], ids=["none", "every type"])
def test_protoc_makes_the_same_message_of_the_file_for_clients(declared: PaymentFields) -> None:
    assert without_json_names(compiled(proto_text(declared))) == descriptor(declared)


def test_without_declared_fields_the_class_is_the_generated_one() -> None:
    assert request_class(TABLE_ALONE) is scoring_pb2.ScoreRequest
    assert request_file(TABLE_ALONE) is scoring_pb2.DESCRIPTOR


def test_a_declared_field_is_100_more_than_its_number() -> None:
    values: dict[str, Any] = {"customer_id": "c", "items": -1, "is_gift": False}
    message = request_class(PAYMENT.fields)(**values)
    assert message.SerializeToString() == b"\xaa\x06\x01c" + b"\xd0\x06" + b"\xff" * 9 + b"\x01" + b"\xa0\x0a\x00"
    # Another release, or a service that does not know the field, skips it.
    assert scoring_pb2.ScoreRequest.FromString(message.SerializeToString()).ListFields() == []


def test_the_file_documents_each_field() -> None:
    text = proto_text(PAYMENT.fields)
    assert (
        "  // Printable text of 1 to 256 bytes; required: a request without it is refused; "
        "personal: neither logged nor kept.\n"
        "  optional string customer_id = 101;\n"
    ) in text
    assert "  // A number from -5 to 500, in kg // of goods.\n  optional double weight = 103;\n" in text
    assert "known values are kind 0 */, kind 1 */," in text
    assert ", ….\n" in text


def test_names_that_protobufs_json_takes_for_one_are_refused() -> None:
    pair = Payment(fields.flag("is_gift", 1), fields.flag("is__gift", 2))
    with pytest.raises(Misconfigured, match="'is_gift' and 'is__gift' have one name in protobuf's JSON, 'isGift'"):
        request_class(pair.fields)


def test_the_rows_of_the_table_have_every_field_once() -> None:
    rows = {row.name: row for row in field_rows(PAYMENT.fields)}
    assert list(rows)[:2] == ["payment_id", "event_time_ms"]
    assert list(rows)[-1] == "is_gift"
    assert (rows["amount_minor"].protobuf, rows["utc_offset_minutes"].protobuf) == ("int64 = 7", "int32 = 12")
    assert rows["customer_id"][1:5] == ("text", "string = 101", True, True)
    assert rows["weight"][1:] == ("number", "double = 103", False, False, "a number from -5 to 500, in kg // of goods")
