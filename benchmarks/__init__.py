"""What gradclip costs, measured beside what each framework's users call today: ``python -m benchmarks cpu``."""
