"""Progress of the profiles: arrival times of payments, watermarks of the payments in them, and completeness."""
