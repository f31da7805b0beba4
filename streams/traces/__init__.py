"""Spans of decisions for a collector of OpenTelemetry.

trace_settings.py  [tracing]
spans.py           a decision to its spans
decisions.py       records of the topic decisions
exporter.py        topic decisions to the collector
"""
