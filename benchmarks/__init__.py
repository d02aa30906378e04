"""What Fedlog costs, beside the least that it could cost: `python -m benchmarks`."""
