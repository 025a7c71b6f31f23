"""Latency, throughput, cache and memory, measured unpruned and pruned in alternation."""
