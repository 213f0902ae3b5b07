"""Shared helpers of setokim: files, file names, processes and pretrained weights."""
