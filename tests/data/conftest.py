"""What the data tests share: real digits written as image folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture
def write_digits(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the first digits of some classes as PNG files in train/<class>/ and val/<class>/ and returns the folder."""

    def write(*, classes: tuple[str, ...] = ("zero", "one", "two"), per_class: int = 6, side: int | None = None, name: str = "own") -> Path:
        images, labels = load_digits(return_X_y=True)
        root = tmp_path / name
        for label, class_name in enumerate(classes):
            own = images[labels == label][: per_class + 2]
            for number, pixels in enumerate(own):
                folder = root / ("train" if number < per_class else "val") / class_name
                folder.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(8, 8))
                (image if side is None else image.resize((side, side))).save(folder / f"{number:02d}.png")
        return root

    return write
