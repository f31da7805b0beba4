"""Profiles of neighbours, such as the merchants that a card has lately used: found by the identities in its profile."""
