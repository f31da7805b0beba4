"""The state of a scoring host: the mirror of profiles and the outbox of decisions."""
