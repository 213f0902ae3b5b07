"""Clusters of images as pictures: maps, figures, animations, and the data behind them."""
