"""How large a teacher bank is, importable without torch: a dry run prints it, the bank checks it against its budget."""

from dataclasses import dataclass

DTYPE_BYTES = {"float16": 2, "float32": 4}
MARK_BYTES = 4  # what says that an entry of an array is filled


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewFacts:
    """What a bank's size depends on: classes, crops (padding in pixels) and flips; a test compares it with `DATASETS`."""

    num_classes: int
    padding: int
    has_flip: bool

    @property
    def num_views(self) -> int:
        """Crops times flips."""
        return (2 * self.padding + 1) ** 2 * (2 if self.has_flip else 1)


VIEW_FACTS = {
    "digits": ViewFacts(num_classes=10, padding=1, has_flip=False),
    "fashion_mnist": ViewFacts(num_classes=10, padding=2, has_flip=True),
    "cifar10": ViewFacts(num_classes=10, padding=4, has_flip=True),
    "cifar100": ViewFacts(num_classes=100, padding=4, has_flip=True),
    "stl10": ViewFacts(num_classes=10, padding=12, has_flip=True),
    "tinyimagenet": ViewFacts(num_classes=200, padding=8, has_flip=True),
}


def bank_bytes(num_images: int, num_views: int, num_rotations: int, num_classes: int, num_branches: int, dtype: str) -> int:
    """Return the size of a full bank: class logits, joint logits of all branches, marks (CIFAR-100, 3 branches, float16: 84 GB)."""
    width = num_classes * (1 + num_branches * num_rotations)
    return num_images * num_views * (num_rotations * width * DTYPE_BYTES[dtype] + (1 + num_branches) * MARK_BYTES)
