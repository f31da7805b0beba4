"""Health and metrics of a process over HTTP."""
