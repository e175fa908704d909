"""Conversion of other formats to raw datasets, and of predictions to other formats."""
