"""The middle of each country, exact enough to tell a flight from an impossible journey.

`countries.csv` holds ISO 3166-1 alpha-2 code, latitude and longitude in degrees.
"""

from __future__ import annotations

import csv
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import country_code

# Added to tenths of a degree. For the kernel, 0 means that a code is no country.
_ZERO = 10_000
_CODE_COUNT = 26 * 26 + 1


def load_places() -> NDArray[np.int64]:
    """Returns latitude and longitude by country code, in tenths of a degree plus 10,000, shape (677, 2).

    A code that is no country has 0 and 0.
    """
    places = np.zeros((_CODE_COUNT, 2), dtype=np.int64)
    file = resources.files("paywarden.features.catalogue.codes").joinpath("countries.csv")
    for row in csv.DictReader(file.read_text(encoding="ascii").splitlines()):
        degrees = (float(row["latitude"]), float(row["longitude"]))
        places[country_code(row["country"])] = [round(10 * degree) + _ZERO for degree in degrees]
    return places
