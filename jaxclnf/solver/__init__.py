"""From response maps to parameters: the objective, one step, the loop."""
