"""Benches of the network library: generated tasks under one fairness rule, and cost against length."""
