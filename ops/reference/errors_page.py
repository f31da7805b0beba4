"""The errors: docs/reference/errors.md.

The tree and its meanings come from schemas/errors.py, the refusals of requests from scoring/.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

from paywarden.ops.reference.page import MADE_FROM_CODE, Undocumented, entry, prose
from paywarden.schemas import errors
from paywarden.scoring.engine.batching import batcher
from paywarden.scoring.engine.batching.batcher import Refusal
from paywarden.scoring.grpc import calls, messages, services
from paywarden.scoring.grpc import grpc_connection as connection
from paywarden.scoring.http import refusals
from paywarden.scoring.http.refusals import HttpRefusal

_Refusal = TypeVar("_Refusal", Refusal, HttpRefusal)

_GRPC_MODULES = (batcher, messages, connection, calls, services)
# How each branch of the tree is handled. A branch without a sentence is handled as the one above it.
_HANDLING = {
    errors.PaywardenError: "",
    errors.InvalidEvent: (
        "A command prints it in one line and ends with status 1. The stream writes the record to `dead-letters` and "
        "goes on. Over HTTP it is 400, `invalid_argument`."
    ),
    errors.TemporaryFailure: (
        "A command prints it in one line and ends with status 1. A service waits, tries again and commits nothing "
        "meanwhile; `/readyz` answers 503 with the reason. Over HTTP it is 503, `unavailable`."
    ),
    errors.StoreUnavailable: "`paywarden_stream_store_up` is 0.",
    errors.BrokerUnavailable: "",
    errors.Misconfigured: "A command or service prints it in one line and ends with status 1.",
    errors.BundleRefused: "",
    errors.RegistryRefused: "A service that runs goes on with the present release.",
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
            f"The errors that Paywarden raises on purpose, exit statuses, and the endpoint's refusals. {MADE_FROM_CODE}"
        ),
        *prose(
            "A message names the setting, field or file, what was wanted and what was got, and never a card id, a "
            "secret or a payload. Any other error is a bug: its traceback is logged, and the process ends (a scoring "
            "worker answers `internal` and goes on)."
        ),
        "## The tree\n",
        *_tree(errors.PaywardenError),
        "",
        "## Exit statuses\n",
        *prose(
            "[Commands](commands.md#exit-statuses) has all. A service ends with 0 after Ctrl-C or SIGTERM, and "
            "with 1 if its stop takes longer than its setting allows. A second signal ends `stream`, `companion` and "
            "`broker` immediately, with 128 plus the signal. A scoring worker ends with 1 for one of these errors and "
            "with 70 for a bug, and `serve` starts it again."
        ),
        "## Refusals of the scoring endpoint\n",
        *prose(
            'Over HTTP the body is `{"error": {"code": "invalid_argument", "field": "amount_minor", "message": "…"}}`. '
            "Over gRPC the status has code and message, and the trailer `paywarden-field` the field. `field` is empty "
            "if no field is wrong. The connection closes after a request that is not HTTP/1.1 or came too slowly. The "
            "code says what to do next:"
        ),
        *_codes(),
        "",
    ]
    return "\n".join(lines)


def _tree(error: type[errors.PaywardenError], depth: int = 0) -> Iterator[str]:
    """The errors of schemas/errors.py in the order of the tree; subclasses elsewhere are handled as their base."""
    if error not in _HANDLING:
        raise Undocumented(f"error {error.__name__}: say in ops/reference/errors_page.py how it is handled")
    meaning = (inspect.getdoc(error) or "").replace("\n", " ")
    yield "  " * depth + entry(error.__name__, (), f"{meaning} {_HANDLING[error]}".rstrip())
    for branch in error.__subclasses__():
        if branch.__module__ == errors.__name__:
            yield from _tree(branch, depth + 1)


def _codes() -> Iterator[str]:
    used = {refusal.code for refusal in _refusals(refusals, HttpRefusal)}
    used |= {refusal.code for refusal in _all_fixed()}
    # Most refusals get their message when they are given, and so are no constants.
    used |= {batcher.UNAUTHENTICATED, batcher.ALREADY_EXISTS}
    if missing := used - _CALLER.keys():
        raise Undocumented(f"refusals {sorted(missing)}: say in ops/reference/errors_page.py what a caller does")
    for name, advice in _CALLER.items():
        statuses = {refusal.status for refusal in _refusals(refusals, HttpRefusal) if refusal.code == name}
        if name in vars(batcher).values():
            statuses.add(refusals.status_of(name))
        http = ", ".join(map(str, sorted(statuses)))
        yield entry(name, (f"HTTP {http}", f"gRPC {messages.CODES[name]} {name.upper()}"), advice)


def _all_fixed() -> list[Refusal]:
    every = [refusal for module in _GRPC_MODULES for refusal in _refusals(module, Refusal)]
    # The scorer's own mark for the rest of a batch; the caller gets the refusal of the request that is refused.
    return [refusal for refusal in every if refusal is not batcher.NOT_DECIDED]


def _refusals(module: ModuleType, kind: type[_Refusal]) -> list[_Refusal]:
    """The constants of a module that are refusals, in order, imported ones too."""
    return [value for value in vars(module).values() if isinstance(value, kind)]
