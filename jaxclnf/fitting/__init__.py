"""A whole face: options, the model, its scales, and `fit`."""
