"""Where the faces are: boxes to start from."""
