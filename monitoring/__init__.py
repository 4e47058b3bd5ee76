"""Request log, reference windows, drift detection and metrics."""
