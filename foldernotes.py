"""What is said of a folder of pictures: what is left out, and what is done to how many of them."""

from imagefiles import CHANGES, FITS, NOT_SQUARE, is_heic, is_too_large, shown, too_large
from npzfiles import listed

HEIC = {".heic", ".heif", ".hif"}


def drawn_note(listing, images):
    """A line on the test set that was drawn, in a list; images: {split: the pictures used}."""
    if not listing.drawn:
        return []
    n_test, total = len(images["test"]), sum(map(len, images.values()))
    return [
        f"{shown(listing.folder)} has no train/ and test/: a fifth of each class, drawn by a fixed "
        f"seed, is the test set ({n_test} of {total})."
    ]


def unread_notes(paths, listing):
    """Lines that name the pictures that could not be read, HEIC and others; [] if all could."""
    heic = [path for path in paths if path.suffix.lower() in HEIC or is_heic(path)]
    large = [path for path in paths if path not in heic and is_too_large(path)]
    damaged = [path for path in paths if path not in heic and path not in large]
    notes = []
    if large:
        names = listed(listing.name_of(path) for path in large)
        notes.append(f"{pictures_are(len(large))} too large and left out: {names}; {too_large()}.")
    if damaged:
        names = listed(listing.name_of(path) for path in damaged)
        pictures = pictures_are(len(damaged)).rsplit(" ", 1)
        notes.append(f"{pictures[0]} cannot be decoded and {pictures[1]} left out: {names}.")
    if heic:
        names = listed(listing.name_of(path) for path in heic)
        notes.append(
            f"{pictures_are(len(heic))} HEIC, which Pillow does not read, and left out: {names}; "
            "save them as JPEG or PNG."
        )
    return notes


def done(changes, fit):
    """One line about what was done to how many pictures, in a list; [] where nothing was.

    changes: Counter of what `decode` says; fit: of FITS.
    """
    texts = CHANGES | {NOT_SQUARE: f"not square, {FITS[fit]} (--fit {', '.join(FITS)})"}
    parts = [f"{pictures_are(changes[c])} {text}" for c, text in texts.items() if changes[c]]
    return [f"{'; '.join(parts)}."] if parts else []


def pictures_are(count):
    """ "1 picture is", or "2 pictures are"."""
    return f"{count:,} picture{' is' if count == 1 else 's are'}"


def counted(left_out):
    """What was left out, {place: Counter of reasons}, in words: of many places the first few."""
    texts = []
    for place, reasons in left_out.items():
        of_place = (f"{n} {reason}{'s' if n > 1 else ''}" for reason, n in reasons.items())
        where = "the folder itself" if place == "." else shown(place)
        texts.append(f"{where}: {', '.join(of_place)}")
    more = len(texts) - 6
    return "; ".join(texts[:6]) + (f"; and in {more} more folders" if more > 0 else "")
