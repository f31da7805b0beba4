"""Work on whole sets of profiles: rebuild, backfill, forget, more partitions."""
