"""Every error Paywarden raises on purpose. The branch says how it is handled.

    PaywardenError
    ├── InvalidEvent        this one input is bad: refuse it (400) or dead-letter it, and go on
    ├── TemporaryFailure    something outside is unwell: retry, do not commit
    │   ├── StoreUnavailable
    │   └── BrokerUnavailable
    └── Misconfigured       nothing to retry: stop at start with one clear line
        └── BundleRefused

Anything else that is raised is a bug and is not caught below the top of a process.
Messages say what was wanted and what was got; they never hold a card id, a secret or a payload.
"""

from __future__ import annotations


class PaywardenError(Exception):
    """Root of the tree; `str()` of any of them is one line fit for an operator."""


class InvalidEvent(PaywardenError):
    """One event or request cannot be used. `field` names the offending field, or is empty."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class TemporaryFailure(PaywardenError):
    """Something outside did not answer; the same call may succeed later."""


class StoreUnavailable(TemporaryFailure):
    """The profile store did not take or give records within its limits."""


class BrokerUnavailable(TemporaryFailure):
    """Kafka did not answer within its limits."""


class Misconfigured(PaywardenError):
    """The process cannot do its job with what it was given: stop at start."""


class BundleRefused(Misconfigured):
    """A model bundle failed one of its checks; the message says which."""
