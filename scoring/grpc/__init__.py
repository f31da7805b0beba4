"""The gRPC front of a scoring worker."""
