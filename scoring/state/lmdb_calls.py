"""LMDB's own C functions, for compiled code that looks profiles up without Python (scoring/state/mirror_look_up.py).

    lmdb.cpython….so ─ dlsym("mdb09_get") ─► address ─► compiled loop: begin, get, get, get, reset

1. The extension of the package `lmdb` exports the C functions of the LMDB that it is built with. They have the names of
   LMDB's C interface, with the version in the prefix from release 2 on: `mdb_get`, `mdb09_get`.
2. An environment that compiled code reads is opened with these functions, since Python's object hides its own.
3. Where an extension exports none of them, `functions` returns None, and the mirror is read through Python.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping
from functools import cache

import lmdb

# From lmdb.h, version 0.9.
_READ_ONLY, _NO_TLS, _NO_READ_AHEAD = 0x20000, 0x200000, 0x800000
MAP_RESIZED = -30785
NOT_FOUND = -30798
_MODE = 0o600
_PREFIXES = ("mdb09_", "mdb_")
_POINTER, _INT, _UINT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t
# The functions that are called, with the types of their arguments. All but those in _WITHOUT_STATUS return an int.
_ARGUMENTS: Mapping[str, tuple[type, ...]] = {
    "env_create": (_POINTER,),
    "env_set_mapsize": (_POINTER, _SIZE),
    "env_set_maxreaders": (_POINTER, _UINT),
    "env_open": (_POINTER, ctypes.c_char_p, _UINT, ctypes.c_uint32),
    "env_close": (_POINTER,),
    "reader_check": (_POINTER, _POINTER),
    "dbi_open": (_POINTER, ctypes.c_char_p, _UINT, _POINTER),
    "txn_begin": (_POINTER, _POINTER, _UINT, _POINTER),
    "txn_renew": (_POINTER,),
    "txn_reset": (_POINTER,),
    "txn_abort": (_POINTER,),
    "txn_id": (_POINTER,),
    "get": (_POINTER, _UINT, _POINTER, _POINTER),
}
_WITHOUT_STATUS = ("env_close", "txn_reset", "txn_abort", "txn_id")


class _Value(ctypes.Structure):
    """LMDB's MDB_val."""

    _fields_ = (("size", _SIZE), ("at", _POINTER))


class LmdbError(Exception):
    """A function of LMDB failed. `code` is its result."""

    def __init__(self, code: int) -> None:
        super().__init__(f"LMDB's error {code}")
        self.code = code


@cache
def functions() -> Mapping[str, int] | None:
    """Returns the addresses of LMDB's functions by their names without prefix; None where they are not exported."""
    if lmdb.version()[:2] != (0, 9):
        return None
    try:
        library = ctypes.CDLL(importlib.import_module("lmdb.cpython").__file__)
    except (ImportError, OSError):
        return None
    for prefix in _PREFIXES:
        try:
            return {
                name: ctypes.cast(getattr(library, prefix + name), ctypes.c_void_p).value or 0 for name in _ARGUMENTS
            }
        except AttributeError:
            continue
    return None


class ReadEnvironment:
    """An LMDB environment of this process, opened for reading. `address` and `database` are for compiled code."""

    def __init__(self, path: str, *, size_bytes: int, readers_max: int) -> None:
        """Open an environment that exists. Raises LmdbError."""
        addresses = functions()
        assert addresses is not None
        self.functions = addresses
        handle = ctypes.c_void_p()
        self._call("env_create", ctypes.byref(handle))
        assert handle.value is not None
        self.address: int = handle.value
        try:
            self._call("env_set_mapsize", self.address, size_bytes)
            self._call("env_set_maxreaders", self.address, readers_max)
            self._call("env_open", self.address, path.encode(), _READ_ONLY | _NO_TLS | _NO_READ_AHEAD, _MODE)
            self._check_readers()
            self.database = self._open_database()
        except LmdbError:
            self.close()
            raise

    def read(self, key: bytes) -> tuple[bytes, int]:
        """Returns the value of a key, empty if there is none, and the transaction that has it. Raises LmdbError."""
        transaction = ctypes.c_void_p()
        self._call("txn_begin", self.address, None, _READ_ONLY, ctypes.byref(transaction))
        number = 0
        try:
            number = ctypes.CFUNCTYPE(_SIZE, _POINTER)(self.functions["txn_id"])(transaction)
            pair = (_Value * 2)(_Value(len(key), ctypes.cast(ctypes.c_char_p(key), ctypes.c_void_p)))
            self._call("get", transaction, self.database, ctypes.byref(pair), ctypes.byref(pair, ctypes.sizeof(_Value)))
            return ctypes.string_at(pair[1].at, pair[1].size), number
        except LmdbError as error:
            if error.code == NOT_FOUND:
                return b"", number
            raise
        finally:
            self.abort(transaction.value or 0)

    def abort(self, transaction: int) -> None:
        """End a transaction; 0 stands for none."""
        if transaction:
            self._call("txn_abort", transaction)

    def grow(self) -> None:
        """Map as much as the writer has. No transaction may be open."""
        self._call("env_set_mapsize", self.address, 0)
        self._check_readers()

    def close(self) -> None:
        """Close the environment. No transaction may be open."""
        self._call("env_close", self.address)
        self.address = 0

    def _check_readers(self) -> None:
        """Free the slots of readers that died. The next transaction takes one of them."""
        self._call("reader_check", self.address, ctypes.byref(ctypes.c_int()))

    def _open_database(self) -> int:
        transaction, number = ctypes.c_void_p(), ctypes.c_uint()
        self._call("txn_begin", self.address, None, _READ_ONLY, ctypes.byref(transaction))
        try:
            # Also sets how keys compare, without which no transaction can look anything up.
            self._call("dbi_open", transaction, None, 0, ctypes.byref(number))
        finally:
            self.abort(transaction.value or 0)
        return number.value

    def _call(self, name: str, *arguments: object) -> None:
        result = None if name in _WITHOUT_STATUS else ctypes.c_int
        code = ctypes.CFUNCTYPE(result, *_ARGUMENTS[name])(self.functions[name])(*arguments)
        if code:
            raise LmdbError(code)
