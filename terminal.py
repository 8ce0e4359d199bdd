"""What is printed on a terminal: lines that fit its width, and how far something is.

Where the stream is no terminal, a file say, lines are FALLBACK wide, or as COLUMNS says.
"""

import contextlib
import re
import shutil
import sys
import threading
import time
import unicodedata

FALLBACK = 100  # columns: as wide as this project's own text
NARROWEST = 40  # columns: a narrower terminal breaks lines itself
LEAST_COLUMN = 20  # columns: a narrower place is for figures, not for words
PATIENCE = 10.0  # seconds before it is said how far something is
LINES_APART = 30.0  # seconds between two such lines where they are not rewritten in place


def window():
    """How many columns the terminal has, at least 2."""
    return max(2, shutil.get_terminal_size((FALLBACK, 24)).columns)


def width():
    """How many columns a line may have."""
    return max(NARROWEST, window())


def is_terminal(stream):
    """Whether a stream is a terminal; a stream that was closed before the start is None."""
    return stream is not None and stream.isatty()


# ---------------------------------------------------------------- letters of two columns


def columns_of(text):
    """How many columns a text takes: two for a wide letter, Japanese say; none for an accent."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    marks = [letter for letter in text if unicodedata.combining(letter)]
    wide_marks = sum(unicodedata.east_asian_width(mark) in "WF" for mark in marks)
    return len(text) + wide - len(marks) - wide_marks


def ljust(text, columns):
    """A text with spaces behind it, so that it takes at least so many columns."""
    return text + " " * (columns - columns_of(text))


def rjust(text, columns):
    """A text with spaces before it, so that it takes at least so many columns."""
    return " " * (columns - columns_of(text)) + text


def cut(text, columns):
    """As much of the beginning of a text as so many columns hold."""
    while columns_of(text) > columns:
        text = text[: min(len(text) - 1, columns)]
    return text


# ---------------------------------------------------------------- lines


def wrapped(text, columns, first="", rest=""):
    """Lines of a text, none broken within a word, which begin with `first` and then with `rest`."""
    lines, line, begun = [], first, False
    for gap, word in re.findall(r"(\s*)(\S+)", text):
        if begun and columns_of(line + gap + word) > columns:
            lines.append(line)
            line, begun = rest, False
        line += " " * len(gap) * begun + word
        begun = True
    return [*lines, line if begun else line.rstrip()]


def paragraphs(text):
    """A text of sentences and tables, its long lines wrapped within their last column.

    A column begins behind several spaces. Where it has no room for words, the line stays as it is.
    """
    lines = []
    for line in text.split("\n"):
        start = max((gap.end() for gap in re.finditer(r" {2,}|^", line)), default=0)
        if columns_of(line) <= width() or width() - start < LEAST_COLUMN:
            lines.append(line)
        else:
            lines += wrapped(line[start:], width(), line[:start], " " * start)
    return "\n".join(lines)


def shortened(text, columns):
    """A text of at most so many columns, its end replaced by an ellipsis where it is longer."""
    return text if columns_of(text) <= columns else cut(text, columns - 1) + "…"


def fitted(parts, columns):
    """The texts of parts in their order, joined; the least important are left out until they fit.

    parts: (importance, text) pairs; importance 0 is never left out. Of equals the last goes first.
    """
    parts = list(parts)

    def line():
        return "  ".join(text for _, text in parts)

    while columns_of(line()) > columns and (most := max(part[0] for part in parts)):
        last = max(k for k, part in enumerate(parts) if part[0] == most)
        del parts[last]
    return line()


def printable(text):
    r"""A text with control characters, line breaks, halves of pairs as \xNN: all can print it."""
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
        else letter
        for letter in text
    )


def print_note(text):
    """Prints a text on standard error as one line; on a terminal it is wrapped between words."""
    text = printable(re.sub(r"\s*\n\s*", " ", text.strip()))
    if is_terminal(sys.stderr):
        text = "\n".join(wrapped(text, width()))
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- progress


def print_progress(line, last, stream):
    """Prints a line that is rewritten in place on a terminal, and stays if it is the last one.

    Where the stream is no terminal it is a line of its own.
    """
    if is_terminal(stream):
        columns = window() - 1
        padded = ljust(cut(wrapped(line, columns)[0], columns), columns)
        print("\r" + padded, end="\n" if last else "", file=stream, flush=True)
    elif stream is not None:
        print(line, file=stream, flush=True)


def duration(seconds):
    """A time as text: seconds, or minutes where there are many."""
    return f"{seconds / 60:.0f} min" if seconds > 100 else f"{seconds:.0f} s"


class Progress:
    """The line that says how far training is; has_maps: whether the loss has maps in it."""

    def __init__(self, title, epochs, steps, images_a_step, has_maps):
        self.title, self.epochs, self.steps = title, epochs, steps
        self.images_a_step, self.has_maps = images_a_step, has_maps
        self.last_printed = 0.0

    def print(self, epoch, step, losses, seconds):
        """Rewrites the line on a terminal; elsewhere prints one now and then.

        losses: means so far, [3]; seconds: of this epoch.
        """
        now, last = time.perf_counter(), step == self.steps
        rewritten = is_terminal(sys.stdout)
        if not (last or rewritten or now - self.last_printed > 10):
            return
        self.last_printed = now
        parts = self.parts(epoch, step, losses.tolist(), seconds)
        columns = window() - 1 if rewritten else sys.maxsize
        print_progress(fitted(parts, columns), last, sys.stdout)

    def parts(self, epoch, step, losses, seconds):
        """The line's parts as `fitted` takes them: a narrow terminal leaves some out."""
        loss, ce, distance = losses
        left = ((self.epochs - epoch) * self.steps / step - 1) * seconds
        parts = [
            (0, f"{self.title}epoch {epoch + 1}/{self.epochs}"),
            (1, f"step {step}/{self.steps}"),
            (2, f"loss {loss:.3f}"),
        ]
        if self.has_maps:  # otherwise the loss is the cross-entropy
            parts += [(4, f"cross-entropy {ce:.3f}"), (3, f"explanation {distance:.3f}")]
        return parts + [
            (1, f"{step * self.images_a_step / seconds:,.0f} images/s"),
            (0, f"{duration(left)} left"),
        ]


class Working:
    """Says on standard error what is being done, once that has taken PATIENCE seconds.

    with Working("measuring") as say:
        say("gradcam, explainer 1 of 2")

    On a terminal the line is rewritten every second, and removed in the end.
    """

    def __init__(self, title):
        self.title, self.what = title, ""
        self.started = time.perf_counter()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.speak, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self.say

    def say(self, what):
        """Notes what is being done now."""
        self.what = what

    def line(self):
        """What is shown: the task, for how long it has run, and what of it is being done."""
        line = f"{self.title}, {duration(time.perf_counter() - self.started)}"
        return f"{line}: {self.what}" if self.what else line

    def speak(self):
        """Runs beside the task, until it is over."""
        rewrites = is_terminal(sys.stderr)
        pause = PATIENCE
        while not self.over.wait(pause):
            with contextlib.suppress(OSError, ValueError):  # whoever read it may be gone
                print_progress(self.line(), False, sys.stderr)
            pause = 1.0 if rewrites else LINES_APART
        if rewrites and time.perf_counter() - self.started > PATIENCE:
            print("\r" + " " * (window() - 1) + "\r", end="", file=sys.stderr, flush=True)

    def __exit__(self, *exception):
        self.over.set()
        self.thread.join()


def counted(n, noun):
    """A number with its noun: "1 step", "2 steps"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
