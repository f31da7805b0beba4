"""Where countries are: the middle of each, near enough to tell a flight from an impossible journey.

`countries.csv` holds ISO 3166-1 alpha-2 code, latitude and longitude in degrees.
"""

from __future__ import annotations

import csv
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import country_code

# Added to tenths of a degree: the kernel takes 0 for a code that is no country.
_ZERO = 10_000
_CODE_COUNT = 26 * 26 + 1


def load_places() -> NDArray[np.int64]:
    """Latitude and longitude by country code, in tenths of a degree plus 10,000. Shape (677, 2); 0 is no country."""
    places = np.zeros((_CODE_COUNT, 2), dtype=np.int64)
    text = resources.files("paywarden.features.catalogue").joinpath("countries.csv").read_text(encoding="ascii")
    for row in csv.DictReader(text.splitlines()):
        degrees = (float(row["latitude"]), float(row["longitude"]))
        places[country_code(row["country"])] = [round(10 * degree) + _ZERO for degree in degrees]
    return places
