"""Size of `saved`, which the Triton kernels of `setok::cluster` keep for its gradients."""

# Bytes of a cache line, on which the parts of `saved` begin.
SAVED_ALIGNMENT = 128


def saved_bytes(tokens: int, images: int) -> int:
    """Return the size of `saved` of the Triton kernels for all tokens of a batch of images.

    A token has a flag, its squared norm and the index that delta is the distance to, an image the
    factors of its range and its distances.
    """
    sizes = (tokens, 4 * images, 4 * images, 4 * tokens, 4 * tokens)
    return sum(-(-size // SAVED_ALIGNMENT) * SAVED_ALIGNMENT for size in sizes)
