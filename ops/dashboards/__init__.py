"""Dashboards of Grafana, written in Python: `python -m paywarden.ops.reference` makes the JSON files beside this one.

grafana.py    the parts of a dashboard, and the JSON that Grafana imports
boards.py     the six dashboards, in order
NAME.py       the panels of one of them
NAME.json     the file that Grafana imports
"""
