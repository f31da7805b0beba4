"""Requests and payments at the endpoint, and fronts that run in a thread."""
