"""OpenFace's model files, read into our own types."""
