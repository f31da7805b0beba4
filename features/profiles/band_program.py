"""The words from which compiled code fills the columns of bands: features/kernel/bands.py describes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import declared_column, number_code
from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.kernel.bands import LOCAL_HOUR, LOCAL_WEEKDAY
from paywarden.schemas.payment_fields import AMOUNT_MINOR, HOUR, WEEKDAY, Form, PaymentFields

_SOURCES = {HOUR: LOCAL_HOUR, WEEKDAY: LOCAL_WEEKDAY, AMOUNT_MINOR: kernel.AMOUNT_MINOR}


def band_program(fields: PaymentFields, key: IdentityKey) -> NDArray[np.int64]:
    """Returns the words of all bands; none without bands."""
    words: list[int] = []
    for band in fields.bands:
        source, bounds = _SOURCES.get(band.of), band.bounds
        if source is None:
            declared = fields.by_name[band.of]
            # The amount in the payment's own currency stands behind that in the reference currency.
            source = declared_column(declared.number) + (declared.form is Form.MONEY)
            bounds = tuple(map(number_code, bounds))
        words += [declared_column(band.number), source, len(bounds), *bounds, *key.of_all(band.texts)]
    return np.array(words, dtype=np.int64)
