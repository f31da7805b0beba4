"""The processes of a scoring host: the supervisor and its workers."""
