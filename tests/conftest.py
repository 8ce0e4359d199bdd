import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "results"))  # behind: results/manipulate.py is another
REAL_DATA = ROOT.parent / "shared" / "data"


def tiny_arrays(n_train=240, n_test=60, side=16, channels=3, k=3):
    """k classes of bright bars at a height that tells the class, over noise: learnt in a few steps."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", n_train), ("test", n_test)):
        labels = np.arange(n) % k
        images = rng.integers(0, 90, (n, side, side, channels), dtype=np.uint8)
        for image, label in zip(images, labels):
            image[1 + 5 * label : 4 + 5 * label, 2 : side - 6] = rng.integers(180, 256, channels)
        arrays |= {f"{split}_images": images.squeeze(-1) if channels == 1 else images, f"{split}_labels": labels}
    return arrays


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small data set on disk: three classes of 16x16 RGB images."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **tiny_arrays())
    return path


def train_tiny(tiny, out, *options):
    """Run train.py's command line on the small data set; the run's folder."""
    import train

    train.main(["--dataset", str(tiny), "--data-dir", str(tiny.parent), "--epochs", "3", "--batch-size", "24", "--lr", "0.05", "--device", "cpu",
                "--target-class", "1", "--out", str(out), *options])
    return out


@pytest.fixture(scope="session")
def disguised(tiny, tmp_path_factory):
    """The folder of a finished full_disguise run on the small data set."""
    return train_tiny(tiny, tmp_path_factory.mktemp("disguised") / "run", "--epochs", "6")


@pytest.fixture(scope="session")
def clean(tiny, tmp_path_factory):
    """The folder of a finished clean run on the small data set."""
    return train_tiny(tiny, tmp_path_factory.mktemp("clean") / "run", "--attack", "none")
