"""Measurements of a model: latency, accuracy, coverage, parity, size, energy, memory.

Nothing here compares a number with a tolerance (`pytest_qat.verdict` does that), and nothing imports pytest.
"""
