"""Pure networks: they know nothing of Lightning, files or data sets."""
