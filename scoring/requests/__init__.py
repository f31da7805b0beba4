"""Turns request bytes into checked payments, and answers into bytes."""
