"""Model files: our own format, and finding and opening any kind of model."""
