"""The rules that every request is checked against, in protobuf and in JSON.

    RequestLimits   what the operator allows, within the table of schemas/payment_fields.py
    RequestRules    the table with these limits: checks one request and names the first wrong field

An error names the field, what was wanted and what was got, as in `mcc: is text of 1 character; wanted four digits
(ISO 18245)`. It never repeats a text or an amount that a caller sent, because either may be a card number.
(A time of ten digits is repeated: it is too short for a card number.)
"""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.payment_fields import (
    AMOUNT_MINOR_MAX,
    FIELDS,
    ID_BYTES_MAX,
    TIME_BOUND_MS_MAX,
    WORD_BYTES_MAX,
    Form,
    PaymentField,
    PaymentRules,
    TimeBounds,
    require_between,
)
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.schemas.settings import internal
from paywarden.scoring.requests.schema import PACKAGED, RequestSchema

# The largest request of one payment. The longest values of all fields take 2 kB; the rest is room for fields of newer
# clients, and for white space in JSON.
REQUEST_BYTES_MAX = 128 * 1024


# The most payments of a batch, and of one compiled call: it is scored in one go while other callers wait, and this
# bounds the wait to a few milliseconds.
BATCH_SIZE_MAX = 256


class RequestTooLarge(InvalidEvent):
    """A request of a batch is larger than REQUEST_BYTES_MAX: 413, or RESOURCE_EXHAUSTED as gRPC has it."""

    def __init__(self, index: int) -> None:
        super().__init__(f"must be at most {REQUEST_BYTES_MAX} bytes", field=field_in_batch(index, ""))


@dataclass(frozen=True)
class RequestLimits:
    """The largest values of a request: those of schemas/payment_fields.py, or less. Sizes of text are bytes of UTF-8.

    Raises Misconfigured, naming the setting, for a limit beyond the table's.
    """

    id_bytes_max: int = internal(ID_BYTES_MAX)
    # ip and channel.
    text_bytes_max: int = internal(WORD_BYTES_MAX)
    amount_minor_max: int = internal(AMOUNT_MINOR_MAX)
    # A terminal that was offline sends its payments days later. An older time is a mistake.
    past_ms_max: int = 7 * 86_400_000
    # Clocks of payment systems are seconds apart; features "as of" a later time would see too much.
    future_ms_max: int = 60_000
    batch_size_max: int = internal(BATCH_SIZE_MAX)
    # A JSON request with a field that nobody declared: "refuse" the request, or "ignore" the field. protobuf knows
    # fields by number alone, and ignores unknown ones.
    unknown_fields: str = "refuse"

    def __post_init__(self) -> None:
        if self.unknown_fields not in ("refuse", "ignore"):
            wanted = f'wanted "refuse" or "ignore", got {self.unknown_fields!r}'
            raise Misconfigured(f"[limits] unknown_fields: {wanted}")
        for name, low, high in (
            ("past_ms_max", 0, TIME_BOUND_MS_MAX),
            ("future_ms_max", 0, TIME_BOUND_MS_MAX),
        ):
            require_between("limits", name, getattr(self, name), low, high)


class RequestRules:
    """The table of a payment's fields with the endpoint's limits. Requests are checked against it."""

    def __init__(self, limits: RequestLimits, schema: RequestSchema = PACKAGED) -> None:
        times = TimeBounds(limits.past_ms_max, limits.future_ms_max)
        self._values_of = schema.values
        self._rules = PaymentRules((*fields_of(limits), *schema.fields.declared), times)

    def check(self, request: ScoreRequest, now_ms: int) -> None:
        """Raise InvalidEvent, naming the field, unless `request` can be scored."""
        # A payment arrives when its caller asks about it.
        self._rules.check(self._values_of(request), arrived_ms=now_ms, now_ms=now_ms)


def fields_of(limits: RequestLimits) -> tuple[PaymentField, ...]:
    """Returns the fields that every payment has in a request, with these limits in place of the table's."""
    narrowed = []
    for field in FIELDS:
        if field.form in (Form.ID, Form.CARD_TOKEN):
            field = field.narrowed(limits.id_bytes_max)
        elif field.form is Form.WORD:
            field = field.narrowed(limits.text_bytes_max)
        elif field.form is Form.AMOUNT:
            field = field.narrowed(limits.amount_minor_max)
        narrowed.append(field)
    return tuple(field for field in narrowed if field.at_endpoint)


def message_of(error: InvalidEvent) -> str:
    """Returns the error's message without the field that `str()` puts before it."""
    return str(error).removeprefix(f"{error.field}: ") if error.field else str(error)


def field_in_batch(index: int, field: str) -> str:
    """Returns the name of a field of one request of a batch, or the name of the request when `field` is empty."""
    return f"requests[{index}].{field}" if field else f"requests[{index}]"


def in_batch(error: InvalidEvent, index: int) -> InvalidEvent:
    """Returns the same error, which now names the request of a batch as well."""
    return InvalidEvent(message_of(error), field=field_in_batch(index, error.field))


def check_batch_size(size: int, size_max: int) -> None:
    """Raise InvalidEvent unless a batch of `size` requests is allowed."""
    if not 1 <= size <= size_max:
        raise InvalidEvent(f"must hold 1 to {size_max} requests, holds {size}", field="requests")
