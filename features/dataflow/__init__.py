"""Histories beyond one machine's memory: stages over sorted partitions, and engines that sort and move rows."""
