"""The protobuf request of a deployment: that of schemas/proto/scoring.proto, and the fields that a project declares.

    declared         customer_id = text("customer_id", 1)      weight = decimal("weight", 3, unit="kg", …)
    scoring.proto    optional string customer_id = 101;         optional double weight = 103;

A declared field has the number 100 + n, where n is its own, and is always `optional`: a missing value
then differs from 0. Only `string`, `int64`, `double` and `bool` are in use. Whole numbers are `int64`, as
`amount_minor` is, and never `sint64`: the type would then follow from the bounds, and other bounds would change the
bytes. A negative number takes ten bytes.

`request_class` makes the class when a process starts; no generated file is needed. Without declared fields it is the
generated class itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import NamedTuple, cast

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import FIELD, TABLE_ALONE, Form, PaymentField, PaymentFields
from paywarden.schemas.proto import scoring_pb2
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest

# Numbers up to this one are for fields that every payment has.
DECLARED_AFTER = 100
_MESSAGE = ScoreRequest.DESCRIPTOR
# The end of ScoreRequest in the .proto file.
_LAST_FIELD = "  optional int32 utc_offset_minutes = 12;\n"
_AMONG_SHOWN_MAX = 10
_TYPES = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "bool": FieldDescriptorProto.TYPE_BOOL,
}
_JSON_TYPES = {"string": "text", "int64": "whole number", "int32": "whole number", "double": "number"}


class FieldRow(NamedTuple):
    """A line of the table of a request's fields, as pages show it."""

    name: str
    json_type: str
    protobuf: str
    is_required: bool
    is_personal: bool
    wanted: str


def field_number(number: int) -> int:
    """Returns the number in protobuf of the declared field with this number."""
    return DECLARED_AFTER + number


def protobuf_type(field: PaymentField) -> str:
    """Returns the type in protobuf of a declared field's values."""
    if field.is_text:
        return "string"
    if field.is_decimal:
        return "double"
    return "bool" if field.form is Form.FLAG else "int64"


@lru_cache(maxsize=64)
def request_class(fields: PaymentFields) -> type[ScoreRequest]:
    """Returns the class of requests with these fields. It has the methods of ScoreRequest, and more attributes.

    Raises Misconfigured for two names that protobuf's JSON would not tell apart.
    """
    if not fields.declared:
        return ScoreRequest
    message = request_file(fields).message_types_by_name[_MESSAGE.name]
    return cast(type[ScoreRequest], GetMessageClass(message))


@lru_cache(maxsize=64)
def request_file(fields: PaymentFields = TABLE_ALONE) -> FileDescriptor:
    """Returns the descriptor of the .proto file, for reflection. Raises Misconfigured, as `request_class` does."""
    if not fields.declared:
        return scoring_pb2.DESCRIPTOR
    _check_json_names(fields)
    file = FileDescriptorProto()
    scoring_pb2.DESCRIPTOR.CopyToProto(file)
    message = next(one for one in file.message_type if one.name == _MESSAGE.name)
    for field in _in_order(fields):
        # proto3 knows whether a scalar was sent by a oneof with this one member.
        message.oneof_decl.add(name=f"_{field.name}")
        message.field.add(
            name=field.name,
            number=field_number(field.number),
            label=FieldDescriptorProto.LABEL_OPTIONAL,
            type=_TYPES[protobuf_type(field)],
            oneof_index=len(message.oneof_decl) - 1,
            proto3_optional=True,
        )
    # A pool of its own: the default pool has a file of this name.
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(file.name)


def proto_text(fields: PaymentFields = TABLE_ALONE) -> str:
    """Returns the .proto file for clients. Raises Misconfigured, as `request_class` does."""
    _check_json_names(fields)
    text = resources.files("paywarden.schemas.proto").joinpath("scoring.proto").read_text(encoding="utf-8")
    before, last, after = text.partition(_LAST_FIELD)
    assert last, "the last field of scoring.proto is another one"
    return before + last + "".join(map(_declaration, _in_order(fields))) + after


def field_rows(fields: PaymentFields = TABLE_ALONE) -> Iterator[FieldRow]:
    """Yields a line for each field of a request: those of every payment, then the declared ones by number."""
    for name, descriptor in _MESSAGE.fields_by_name.items():
        field = FIELD[name]
        kind = "string" if field.is_text else "int32" if descriptor.type == descriptor.TYPE_INT32 else "int64"
        protobuf = f"{kind} = {descriptor.number}"
        yield FieldRow(name, _JSON_TYPES[kind], protobuf, field.is_required, field.is_personal, field.wanted)
    for field in _in_order(fields):
        kind = protobuf_type(field)
        json_type = _JSON_TYPES.get(kind, "true or false")
        protobuf = f"{kind} = {field_number(field.number)}"
        yield FieldRow(field.name, json_type, protobuf, field.is_required, field.is_personal, described(field))


def _in_order(fields: PaymentFields) -> list[PaymentField]:
    return sorted(fields.declared, key=lambda field: field.number)


def _declaration(field: PaymentField) -> str:
    notes = [described(field)]
    if field.is_required:
        notes.append("required: a request without it is refused")
    if field.is_personal:
        notes.append("personal: neither logged nor kept")
    comment = "; ".join(notes)
    kind, number = protobuf_type(field), field_number(field.number)
    return f"  // {comment[0].upper()}{comment[1:]}.\n  optional {kind} {field.name} = {number};\n"


def described(field: PaymentField) -> str:
    """Returns what a value must be, its unit and the first of its known values, in one line."""
    text = field.wanted
    # The unit of money and of moments is in what is wanted.
    if field.unit and field.form in (Form.INTEGER, Form.DECIMAL):
        text += f", in {field.unit}"
    if field.among:
        shown = ", ".join(field.among[:_AMONG_SHOWN_MAX])
        text += f"; known values are {shown}{', …' if len(field.among) > _AMONG_SHOWN_MAX else ''}"
    return " ".join(text.split())


def _check_json_names(fields: PaymentFields) -> None:
    """protoc refuses two fields of one lowerCamelCase name."""
    names = {_json_name(name): name for name in _MESSAGE.fields_by_name}
    for field in fields.declared:
        other = names.setdefault(_json_name(field.name), field.name)
        if other != field.name:
            raise Misconfigured(
                f"the fields {other!r} and {field.name!r} have one name in protobuf's JSON, {_json_name(field.name)!r}"
            )


def _json_name(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)
