"""The data contract, readers of published formats, quality control and corpus releases."""
