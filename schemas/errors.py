"""Every error that Paywarden raises on purpose. The branch of the tree says how an error is handled.

    PaywardenError
    ├── InvalidEvent        one input is bad: refuse it (400) or dead-letter it, and go on
    ├── TemporaryFailure    a system outside does not answer: retry, do not commit
    │   ├── StoreUnavailable
    │   └── BrokerUnavailable
    └── Misconfigured       a retry cannot help: stop at start with one clear line
        ├── BundleRefused
        └── RegistryRefused

Any other exception is a bug, and only the top of a process catches it.
A message says what was wanted and what was got. It never holds a card id, a secret or a payload.
"""

from __future__ import annotations


class PaywardenError(Exception):
    """Root of the tree. `str()` of any error in it is one line for an operator."""


class InvalidEvent(PaywardenError):
    """One event or request cannot be used. `field` names the wrong field; empty if no field is to blame."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class TemporaryFailure(PaywardenError):
    """A system outside the process did not answer; the same call may succeed later."""


class StoreUnavailable(TemporaryFailure):
    """The profile store did not read or write records within its timeouts."""


class BrokerUnavailable(TemporaryFailure):
    """Kafka did not answer within its timeouts."""


class Misconfigured(PaywardenError):
    """The process cannot work with its settings, files or arguments: it stops at its start."""


class BundleRefused(Misconfigured):
    """A model bundle failed one of its checks; the message says which."""


class RegistryRefused(Misconfigured):
    """The model registry breaks a rule or its log is damaged; the message says where. Nothing was written."""
