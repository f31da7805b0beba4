"""The HTTP/1.1 front of a scoring worker."""
