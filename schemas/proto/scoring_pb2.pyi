from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreRequest(_message.Message):
    __slots__ = ("payment_id", "event_time_ms", "card_id", "merchant_id", "device_id", "ip", "amount_minor", "currency", "mcc", "country", "channel", "utc_offset_minutes")
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    CARD_ID_FIELD_NUMBER: _ClassVar[int]
    MERCHANT_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    IP_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_MINOR_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    MCC_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    UTC_OFFSET_MINUTES_FIELD_NUMBER: _ClassVar[int]
    payment_id: str
    event_time_ms: int
    card_id: str
    merchant_id: str
    device_id: str
    ip: str
    amount_minor: int
    currency: str
    mcc: str
    country: str
    channel: str
    utc_offset_minutes: int
    def __init__(self, payment_id: _Optional[str] = ..., event_time_ms: _Optional[int] = ..., card_id: _Optional[str] = ..., merchant_id: _Optional[str] = ..., device_id: _Optional[str] = ..., ip: _Optional[str] = ..., amount_minor: _Optional[int] = ..., currency: _Optional[str] = ..., mcc: _Optional[str] = ..., country: _Optional[str] = ..., channel: _Optional[str] = ..., utc_offset_minutes: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("payment_id", "decision_id", "score", "action", "reasons", "model_version", "flags", "profile_age_ms")
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    payment_id: str
    decision_id: str
    score: float
    action: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    model_version: str
    flags: _containers.RepeatedScalarFieldContainer[str]
    profile_age_ms: int
    def __init__(self, payment_id: _Optional[str] = ..., decision_id: _Optional[str] = ..., score: _Optional[float] = ..., action: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ..., model_version: _Optional[str] = ..., flags: _Optional[_Iterable[str]] = ..., profile_age_ms: _Optional[int] = ...) -> None: ...

class ScoreBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[ScoreRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[ScoreRequest, _Mapping]]] = ...) -> None: ...

class ScoreBatchResponse(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[ScoreResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[ScoreResponse, _Mapping]]] = ...) -> None: ...
