"""What went on in a phase, and what is wrong with a solver that does not converge."""
