"""The errors of the client.

    PaywardenError
    ├── WrongRequest     this payment cannot be scored as it is: correct the request
    └── WrongSettings    the client cannot be made with these settings

There is no error for a service that does not answer: the caller gets a stand-in decision.
"""

from __future__ import annotations


class PaywardenError(Exception):
    """The base of the client's errors."""


class WrongRequest(PaywardenError):
    """The request is wrong. `field` names the wrong field, or is empty; `code` is the service's, or "not_sent".

    No text of it holds a value of the payment.
    """

    def __init__(self, message: str, *, field: str = "", code: str = "not_sent", status: int = 0) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.message, self.field, self.code, self.status = message, field, code, status


class WrongSettings(PaywardenError):
    """A setting or a policy is wrong. `where` is its path, such as `limits[1].amount_over.EUR`."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where
