"""Keep, repair, rebuild or erase stored data."""
