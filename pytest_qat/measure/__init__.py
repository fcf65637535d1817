"""What is measured, apart from what is concluded: latency, accuracy, coverage, parity, size, energy.

Nothing here judges a number by a tolerance (see `pytest_qat.verdict`), and nothing imports pytest.
"""
