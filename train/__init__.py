"""Data, training loop, runs on disk, metrics, evaluation and reports."""
