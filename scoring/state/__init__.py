"""What a scoring host keeps: the mirror of profiles, and the outbox of decisions."""
