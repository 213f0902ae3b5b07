"""Commands of `setok` that need setokim."""
