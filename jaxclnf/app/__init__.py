"""What a person touches: the command, its pictures and its tables."""
