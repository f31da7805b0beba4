"""Servers of others that Paywarden talks to: started on free ports, stopped with the tests."""
