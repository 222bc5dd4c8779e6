"""What the figures we quote were measured with: `python -m benchmarks.decode` and its kin print them again."""
