"""Patch experts: conditional neural fields learnt by their exact likelihood."""
