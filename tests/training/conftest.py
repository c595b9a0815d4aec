"""Image files of several sizes, for the trainings that read them in every epoch."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of real digits, enlarged to rectangles of different sizes: train/<class>/ and val/<class>/ JPEG files."""
    return write_photos(tmp_path_factory.mktemp("photos"))


def write_photos(root: Path, *, per_class: int = 8) -> Path:
    images, labels = load_digits(return_X_y=True)
    for label, name in enumerate(("zero", "one", "two")):
        for number, pixels in enumerate(images[labels == label][: per_class + 4]):
            folder = root / ("train" if number < per_class else "val") / name
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(8, 8))
            image.resize((40 + 3 * number, 56 - 2 * number)).convert("RGB").save(folder / f"{number:02d}.jpg")
    return root
