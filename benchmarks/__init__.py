"""Figures that the README, the cards and the notebooks show; results.json holds them all."""
