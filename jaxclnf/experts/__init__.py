"""What a landmark looks like: patch experts turn the image into response maps."""
