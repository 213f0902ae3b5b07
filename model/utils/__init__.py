"""What every part of setokim builds on: files, names, processes, pretrained weights."""
