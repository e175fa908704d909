"""Other formats to raw datasets, and predictions to other formats."""
