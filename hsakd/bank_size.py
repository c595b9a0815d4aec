"""How large a teacher bank is, importable without torch: a dry run prints it, the bank checks it against its budget."""

DTYPE_BYTES = {"float16": 2, "float32": 4}
MARK_BYTES = 4  # what says that an entry of an array is filled


def bank_bytes(num_images: int, num_views: int, num_rotations: int, num_classes: int, num_branches: int, dtype: str) -> int:
    """Return the size of a full bank: class logits, joint logits of all branches, marks (CIFAR-100, 3 branches, float16: 84 GB)."""
    width = num_classes * (1 + num_branches * num_rotations)
    return num_images * num_views * (num_rotations * width * DTYPE_BYTES[dtype] + (1 + num_branches) * MARK_BYTES)
