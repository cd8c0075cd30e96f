"""Files, names, messages and progress: nothing here knows a model."""
