"""Where the landmarks are: rotations, similarities, the point distribution model."""
