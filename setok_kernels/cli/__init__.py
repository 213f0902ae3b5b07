"""The console script `setok`."""
