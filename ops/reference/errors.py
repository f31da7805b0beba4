"""The errors: docs/reference/errors.md.

The tree and its meanings come from schemas/errors.py, the refusals of requests from scoring/.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from http import HTTPStatus
from types import ModuleType
from typing import TypeVar

from paywarden.ops.cli import EXIT_STATUSES
from paywarden.ops.reference.page import MADE_FROM_CODE, Undocumented, code, prose, table
from paywarden.schemas import errors
from paywarden.scoring.engine.batching import batcher
from paywarden.scoring.engine.batching.batcher import Refusal
from paywarden.scoring.grpc import calls, connection, messages, services
from paywarden.scoring.http import refusals
from paywarden.scoring.http.refusals import HttpRefusal

_Refusal = TypeVar("_Refusal", Refusal, HttpRefusal)

_GRPC_MODULES = (batcher, messages, connection, calls, services)
# The meaning of each branch of the tree for an operator, and in the answer to a request.
_HANDLING = {
    errors.PaywardenError: ("", "", ""),
    errors.InvalidEvent: (
        "prints it in one line and ends with status 1",
        "the stream writes the record to `dead-letters` and goes on",
        "`invalid_argument`: 400",
    ),
    errors.TemporaryFailure: (
        "prints it in one line and ends with status 1; the same command may succeed later",
        "a service waits, tries again and commits nothing meanwhile; `/readyz` says 503 and why",
        "`unavailable`: 503",
    ),
    errors.StoreUnavailable: ("as above", "as above: `paywarden_stream_store_up` is 0", "(scoring asks no store)"),
    errors.BrokerUnavailable: ("as above", "as above", "(scoring asks no broker)"),
    errors.Misconfigured: (
        "prints it in one line and ends with status 1",
        "a service does not start, or stops, with the same line and status",
        "(no worker starts)",
    ),
    errors.BundleRefused: ("as above", "as above", "(no worker starts)"),
    errors.RegistryRefused: ("as above", "as above: the present release goes on", "(no worker starts)"),
}
# The caller's next step after a refusal, by its code.
_CALLER = {
    "invalid_argument": "Correct the request: `field` names what is wrong. The same request fails again.",
    "unauthenticated": "Send a bearer token that the host's `[auth] tokens_file` holds.",
    "not_found": "Correct the path or the name of the service.",
    "already_exists": "Use another `payment_id`: this one belongs to a payment with other contents.",
    "resource_exhausted": "Wait (`Retry-After` says how long over HTTP), then send the same request again.",
    "deadline_exceeded": "Send the same request again; a decided payment gets the same decision.",
    "unavailable": "Send the same request again after a moment.",
    "internal": "Send the same request again once. If it fails again, read the worker's log.",
    "unimplemented": "Use a method and version that exist.",
}


def errors_page() -> str:
    """Returns the page of errors, exit statuses and refusals."""
    lines = [
        "# Errors\n",
        *prose(
            "The errors that Paywarden raises on purpose, exit statuses, and the endpoint's refusals. "
            f"{MADE_FROM_CODE}"
        ),
        *prose(
            "A message names the setting, field or file, what was wanted and what was got, and never a card id, a "
            "secret or a payload. Any other error is a bug: its traceback is logged, and the process ends (a scoring "
            "worker answers `internal` and goes on)."
        ),
        "## The tree\n",
        f"{_drawing()}\n",
        *table(("error", "meaning", "a command", "a service", "over HTTP"), _tree(errors.PaywardenError)),
        "## Exit statuses\n",
        *table(("status", "meaning"), ((str(status), text) for status, text in EXIT_STATUSES.items())),
        *prose(
            "A service ends with 0 after Ctrl-C or SIGTERM, and with 1 if its stop takes longer than its setting "
            "allows. A second signal ends `stream`, `companion` and `broker` at once, with 128 plus the signal. A "
            "scoring worker ends with 1 for one of these errors and with 70 for a bug, and `serve` starts it again."
        ),
        "## Refusals of the scoring endpoint\n",
        *prose(
            'Over HTTP the body is `{"error": {"code": "invalid_argument", "field": "amount_minor", "message": "…"}}`. '
            "Over gRPC the status has code and message, and the trailer `paywarden-field` the field. `field` is empty "
            "if no field is wrong."
        ),
        *table(("code", "HTTP", "gRPC", "what the caller does"), _codes()),
        "### HTTP: refusals before a route\n",
        *table(("status", "code", "message", "connection"), _http()),
        "### Refusals with a fixed message\n",
        *prose("The scorer's refusals are the same over HTTP and gRPC."),
        *table(("code", "message", "field", "given by"), _fixed()),
    ]
    return "\n".join(lines)


def _drawing() -> str:
    """The indented lines of the docstring of schemas/errors.py, as they are."""
    text = inspect.getdoc(errors) or ""
    return "\n".join(line for line in text.splitlines() if line.startswith("    "))


def _tree(error: type[errors.PaywardenError], depth: int = 0) -> Iterator[tuple[str, ...]]:
    """The errors of schemas/errors.py in the order of the tree; subclasses elsewhere are handled as their base."""
    if error not in _HANDLING:
        raise Undocumented(f"error {error.__name__}: say in ops/reference/errors.py how it is handled")
    meaning = (inspect.getdoc(error) or "").replace("\n", " ")
    yield "&nbsp;" * 4 * depth + code(error.__name__), meaning, *_HANDLING[error]
    for branch in error.__subclasses__():
        if branch.__module__ == errors.__name__:
            yield from _tree(branch, depth + 1)


def _codes() -> Iterator[tuple[str, ...]]:
    used = {refusal.code for refusal in _refusals(refusals, HttpRefusal)}
    used |= {refusal.code for refusal in _all_fixed()}
    # Most refusals get their message when they are given, and so are no constants.
    used |= {batcher.UNAUTHENTICATED, batcher.ALREADY_EXISTS}
    if missing := used - _CALLER.keys():
        raise Undocumented(f"refusals {sorted(missing)}: say in ops/reference/errors.py what a caller does")
    for name, advice in _CALLER.items():
        statuses = {refusal.status for refusal in _refusals(refusals, HttpRefusal) if refusal.code == name}
        if name in vars(batcher).values():
            statuses.add(refusals.status_of(name))
        spoken = ", ".join(f"{status} {HTTPStatus(status).phrase}" for status in sorted(statuses))
        yield code(name), spoken, f"{messages.CODES[name]} {name.upper()}", advice


def _http() -> Iterator[tuple[str, ...]]:
    for refusal in sorted(_refusals(refusals, HttpRefusal), key=lambda refusal: refusal.status):
        field = f"{refusal.field}: " if refusal.field else ""
        yield str(refusal.status), code(refusal.code), field + refusal.message, "closes" if refusal.closes else ""


def _fixed() -> Iterator[tuple[str, ...]]:
    unique: dict[Refusal, None] = dict.fromkeys(_all_fixed())
    for refusal in unique:
        giver = "the scorer" if refusal in _refusals(batcher, Refusal) else "gRPC"
        yield code(refusal.code), refusal.message, code(refusal.field), giver


def _all_fixed() -> list[Refusal]:
    every = [refusal for module in _GRPC_MODULES for refusal in _refusals(module, Refusal)]
    # The scorer's own mark for the rest of a batch; the caller gets the refusal of the request that is refused.
    return [refusal for refusal in every if refusal is not batcher.NOT_DECIDED]


def _refusals(module: ModuleType, kind: type[_Refusal]) -> list[_Refusal]:
    """The constants of a module that are refusals, in order, imported ones too."""
    return [value for value in vars(module).values() if isinstance(value, kind)]
