"""How fast a large ChestX-ray14 is decoded, and in how much memory: the README's figures.

    python results/decoding.py    # some 5 minutes on two cores, 1 GB of disk

Lays out a folder as the NIH's with 20,000 names for 16 drawn pictures of 1024 px, each of about as many bytes as a radiograph; decodes it to 224 px in a
process of its own, which is interrupted halfway and started again; loads what was kept. Writes results/decoding.json.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

import study  # first: it makes the project's modules known
import chestxray
from cli import UserError, command
from PIL import Image, ImageFilter

PICTURES, DIFFERENT, SIDE, SIZE = 20_000, 16, 1024, 224
DECODE = f"""
import resource, sys, time
sys.path.insert(0, {str(study.ROOT)!r})
import data
began = time.perf_counter()
dataset = data.load(sys.argv[1], sys.argv[2], {SIZE})
print(len(dataset.train_labels) + len(dataset.test_labels), time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def tree(folder):
    """Makes the folder; returns the mean length of a picture's file in bytes."""
    (folder / "images").mkdir(parents=True)
    rng, drawn = np.random.default_rng(0), []
    for k in range(DIFFERENT):
        smooth = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).resize((SIDE, SIDE), Image.BICUBIC).filter(ImageFilter.GaussianBlur(20))
        pixels = np.asarray(smooth, np.float32) + rng.normal(0, 1.2, (SIDE, SIDE))
        drawn.append(folder / f"{k}.drawn")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(drawn[-1], format="PNG")
    names = [f"{n // 4:08d}_{n % 4:03d}.png" for n in range(PICTURES)]
    for n, name in enumerate(names):
        os.link(drawn[n % DIFFERENT], folder / "images" / name)
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID"]
    lines += [f"{name},{'No Finding' if n % 2 else chestxray.DISEASES[n % 14]},0,{n // 4}" for n, name in enumerate(names)]
    (folder / chestxray.TABLES[0]).write_text("\n".join(lines) + "\n")
    for part, name in chestxray.LISTS.items():
        (folder / name).write_text("\n".join(n for k, n in enumerate(names) if (k // 4 % 4 == 0) == (part == "test")) + "\n")
    return sum(path.stat().st_size for path in drawn) / DIFFERENT


def load(name, data_dir, stop_at=None):
    """(images, seconds, peak MiB) of loading in a process of its own; with stop_at interrupted, as by Ctrl-C, when so many pictures are decoded."""
    process = subprocess.Popen([sys.executable, "-c", DECODE, name, str(data_dir)], stdout=subprocess.PIPE, text=True)
    notes = data_dir / f"chestxray14_{SIZE}.part.json"
    while stop_at and process.poll() is None:
        time.sleep(0.05)
        if notes.exists() and json.loads(notes.read_text())["done"] >= stop_at:
            process.send_signal(signal.SIGINT)
            process.wait()
            return None
    printed, _ = process.communicate()
    if process.returncode:
        raise UserError("loading has failed: see above")
    return [float(word) for word in printed.split()]


@command
def main(argv):
    data_dir = study.ROOT / "runs" / "decoding"
    shutil.rmtree(data_dir, ignore_errors=True)
    length = tree(data_dir / "chestxray14")
    load("chestxray14-multi", data_dir, stop_at=PICTURES // 2)
    done = json.loads((data_dir / f"chestxray14_{SIZE}.part.json").read_text())["done"]
    _, seconds, decoding = load("chestxray14-multi", data_dir)
    record = {"command": "python results/decoding.py", "hardware": study.hardware(), "commit": study.commit(), "pictures": PICTURES, "side": SIDE, "size": SIZE,
              "bytes_a_picture": round(length), "interrupted_at": done, "pictures_per_second": (PICTURES - done) / seconds, "peak_mib_decoding": decoding}
    for name in ("chestxray14-multi", "chestxray14"):
        images, seconds, peak = load(name, data_dir)
        record[name] = {"images": images, "seconds": seconds, "peak_mib": peak}
    whole, each = chestxray.PUBLISHED, SIZE**2
    peak = max(decoding, record["chestxray14-multi"]["peak_mib"], record["chestxray14"]["peak_mib"])
    record["all"] = {"pictures": whole, "decoding_minutes": whole / record["pictures_per_second"] / 60, "images_gib": whole * each / 2**30,
                     "peak_gib": (peak + (whole - PICTURES) * each / 2**20) / 2**10, "disk_while_decoding_gib": 2 * whole * each / 2**30}
    shutil.rmtree(data_dir)
    (study.ROOT / "results" / "decoding.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
