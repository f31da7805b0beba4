"""The fields of a request in one deployment, as the formats and the checks need them.

    RequestSchema()                      the fields that every payment has
    RequestSchema(plan.fields)           these, and those that the project declares

A request's bytes begin with the fields that every payment has; the declared ones follow, since their numbers are above
100. The outbox and the decisions keep the first part alone: nobody reads the others there, and a field that is not kept
     cannot leak. Conditions of the policy see all fields, while the payment is decided (`DeclaredPayment`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, cast

from paywarden.models.policy.rules import ConditionFields
from paywarden.schemas.payment_fields import FIELDS, TABLE_ALONE, DerivedField, Form, PaymentField, PaymentFields
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.schemas.request_proto import protobuf_type, request_class

INT64, INT32 = range(-(2**63), 2**63), range(-(2**31), 2**31)
_PYTHON_TYPES: Mapping[str, type] = {"string": str, "int64": int, "double": float, "bool": bool}


class RequestSchema:
    """The fields of a request, the class of its message, and the types of its values."""

    def __init__(self, fields: PaymentFields = TABLE_ALONE, *, ignores_unknown: bool = False) -> None:
        """`ignores_unknown`: a JSON request may have fields that nobody declared. Raises Misconfigured."""
        self.fields, self.ignores_unknown = fields, ignores_unknown
        self.message = request_class(fields)
        self.json_types: Mapping[str, type] = {
            **{field.name: str if field.is_text else int for field in FIELDS if field.at_endpoint},
            **{field.name: _PYTHON_TYPES[protobuf_type(field)] for field in fields.declared},
        }
        descriptors = self.message.DESCRIPTOR.fields
        # JSON and protobuf have the same fields.
        assert {field.name for field in descriptors} == self.json_types.keys()
        self.ranges: Mapping[str, range] = {
            field.name: INT32 if field.type == field.TYPE_INT32 else INT64 for field in descriptors
        }
        self.names = list(self.json_types)
        self.values_of: Callable[[ScoreRequest], tuple[Any, ...]] = attrgetter(*self.names)
        self._readers: Mapping[str, Callable[[ScoreRequest], Any]] = {
            **{field.name: _reader(field) for field in fields.declared},
            **{derived.name: _derived_reader(derived) for derived in fields.derived},
        }
        # The fields whose absence protobuf records.
        self.may_be_absent = [field.name for field in descriptors if field.has_presence]

    def values(self, request: ScoreRequest) -> dict[str, Any]:
        """Returns the values of a request by field. A field that was not sent is None, or empty, or 0."""
        values = dict(zip(self.names, self.values_of(request), strict=True))
        for name in self.may_be_absent:
            if not values[name] and not request.HasField(name):
                values[name] = None
        return values

    def payment_of(self, body: bytes) -> ConditionFields:
        """Returns a request as conditions of the policy read it. The body must be right."""
        if not self._readers:
            return ScoreRequest.FromString(body)
        # Conditions name only fields that `DeclaredPayment` has.
        return cast(ConditionFields, DeclaredPayment(self.message.FromString(body), self._readers))


class DeclaredPayment:
    """A payment with declared and derived fields as attributes. A value is read when a condition asks for it.

    A missing text is empty, a missing number NaN, a missing flag None. A decimal has the digits that its field keeps.
    """

    __slots__ = ("_message", "_readers")

    def __init__(self, message: ScoreRequest, readers: Mapping[str, Callable[[ScoreRequest], Any]]) -> None:
        self._message, self._readers = message, readers

    def __getattr__(self, name: str) -> Any:
        read = self._readers.get(name)
        return getattr(self._message, name) if read is None else read(self._message)


def _reader(field: PaymentField) -> Callable[[ScoreRequest], Any]:
    name, get = field.name, attrgetter(field.name)
    if field.is_text:
        return get
    missing = None if field.form is Form.FLAG else math.nan
    if field.is_decimal:
        scale = 10**field.decimals
        return lambda message: field.scaled(get(message)) / scale if message.HasField(name) else missing
    return lambda message: get(message) if message.HasField(name) else missing


def _derived_reader(derived: DerivedField) -> Callable[[ScoreRequest], str]:
    get = attrgetter(derived.of)
    return lambda message: derived.value_of(get(message))


PACKAGED = RequestSchema()
"""The fields that every payment has."""
