"""Histories to learn and test on: the simulator, and the Fraud Detection Handbook's table."""
