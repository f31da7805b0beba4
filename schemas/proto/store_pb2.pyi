from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PaymentRecord(_message.Message):
    __slots__ = ("source", "offset", "keys", "label_changes", "attributes", "declined_changes", "beside", "beside_fields")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LABEL_CHANGES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    DECLINED_CHANGES_FIELD_NUMBER: _ClassVar[int]
    BESIDE_FIELD_NUMBER: _ClassVar[int]
    BESIDE_FIELDS_FIELD_NUMBER: _ClassVar[int]
    source: int
    offset: int
    keys: _containers.RepeatedScalarFieldContainer[str]
    label_changes: _containers.RepeatedCompositeFieldContainer[LabelChange]
    attributes: _containers.RepeatedScalarFieldContainer[int]
    declined_changes: _containers.RepeatedCompositeFieldContainer[DeclinedChange]
    beside: int
    beside_fields: int
    def __init__(self, source: _Optional[int] = ..., offset: _Optional[int] = ..., keys: _Optional[_Iterable[str]] = ..., label_changes: _Optional[_Iterable[_Union[LabelChange, _Mapping]]] = ..., attributes: _Optional[_Iterable[int]] = ..., declined_changes: _Optional[_Iterable[_Union[DeclinedChange, _Mapping]]] = ..., beside: _Optional[int] = ..., beside_fields: _Optional[int] = ...) -> None: ...

class LabelChange(_message.Message):
    __slots__ = ("source", "offset", "weight", "declined_changes")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DECLINED_CHANGES_FIELD_NUMBER: _ClassVar[int]
    source: int
    offset: int
    weight: int
    declined_changes: int
    def __init__(self, source: _Optional[int] = ..., offset: _Optional[int] = ..., weight: _Optional[int] = ..., declined_changes: _Optional[int] = ...) -> None: ...

class DeclinedChange(_message.Message):
    __slots__ = ("source", "offset", "before", "after", "label")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    source: int
    offset: int
    before: int
    after: int
    label: int
    def __init__(self, source: _Optional[int] = ..., offset: _Optional[int] = ..., before: _Optional[int] = ..., after: _Optional[int] = ..., label: _Optional[int] = ...) -> None: ...
