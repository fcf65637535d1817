"""What is measured, apart from what is concluded: latency, accuracy, coverage, parity, size, energy.

Nothing here knows a tolerance's verdict (`pytest_qat.verdict`) or pytest.
"""
