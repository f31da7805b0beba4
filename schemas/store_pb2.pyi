from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PaymentRecord(_message.Message):
    __slots__ = ("source", "offset", "event_time_ms", "amount", "keys", "label_changes")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LABEL_CHANGES_FIELD_NUMBER: _ClassVar[int]
    source: int
    offset: int
    event_time_ms: int
    amount: int
    keys: _containers.RepeatedScalarFieldContainer[str]
    label_changes: _containers.RepeatedCompositeFieldContainer[LabelChange]
    def __init__(self, source: _Optional[int] = ..., offset: _Optional[int] = ..., event_time_ms: _Optional[int] = ..., amount: _Optional[int] = ..., keys: _Optional[_Iterable[str]] = ..., label_changes: _Optional[_Iterable[_Union[LabelChange, _Mapping]]] = ...) -> None: ...

class LabelChange(_message.Message):
    __slots__ = ("source", "offset", "weight")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    source: int
    offset: int
    weight: int
    def __init__(self, source: _Optional[int] = ..., offset: _Optional[int] = ..., weight: _Optional[int] = ...) -> None: ...
