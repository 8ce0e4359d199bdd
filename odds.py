"""How often clean models get as far as this: the words of a verdict, and what they are worth.

    odds = odds_of("neural_cleanse", options, "shapes", largest_index)
    odds.word        # "stands out", "inconclusive" or "nothing stands out"

clean_models.json has the largest index of each of some clean models, by method and data, and the
options they hold for: a value, or a list of those with the same odds (results/steady.md). The
indices are from results/audits.json. Of other data, the models of all data are taken together.
Whoever has clean models of his own data gives them (--calibrate), and they are the yardstick
instead.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parent / "defences" / "clean_models.json"
SEARCHES = {"prune": "neural_cleanse"}  # methods whose index is another's
STANDS_OUT, INCONCLUSIVE, NOTHING = "stands out", "inconclusive", "nothing stands out"
# The chance that a clean model gets as far is counted as (those that do + 1) / (all + 1). It is at
# most so much of what stands out, and of what is inconclusive. So of ten models, nine of them known
# to be clean, the tenth stands out if it is above all others.
LIMIT, DOUBT = 0.1, 0.3
CLEAN_NEEDED = math.ceil(1 / LIMIT) - 1  # clean models, for anything to stand out beside them


@dataclass(frozen=True)
class Odds:
    """How a value lies among those of clean models.

    as_far: how many of `count` clean models have this value or more; what: which models they are.
    """

    as_far: int
    count: int
    what: str

    @property
    def chance(self):
        """That a further clean model gets as far: at least 1 / (count + 1)."""
        return (self.as_far + 1) / (self.count + 1)

    @property
    def word(self):
        """What is said of it."""
        if self.chance <= LIMIT:
            return STANDS_OUT
        return INCONCLUSIVE if self.chance <= DOUBT else NOTHING

    @property
    def backdoored(self):
        """True, None for inconclusive, or False."""
        return {STANDS_OUT: True, INCONCLUSIVE: None, NOTHING: False}[self.word]

    def record(self):
        """What verdict.json keeps of it."""
        return {
            "word": self.word,
            "as_far": self.as_far,
            "clean_models": self.count,
            "chance": self.chance,
            "sentence": self.sentence(),
        }

    def sentence(self):
        """How many clean models get as far, in words."""
        few = "none" if self.as_far == 0 else str(self.as_far)
        return f"{few} of {self.count} {self.what} {'get' if self.as_far > 1 else 'gets'} as far"


@functools.cache
def clean_models():
    """What TABLE holds: {method: {"settings", "models": {data: indices}}}."""
    return json.loads(TABLE.read_text())


def odds_of(method, options, data, value, calibration=None):
    """The Odds of a method's largest index; None where no clean model was measured likewise.

    options: {name: value} of the method; data: a data set's name; calibration: the largest indices
    of clean models, in place of ours.
    """
    if calibration:
        return Odds(count_as_far(calibration, value), len(calibration), "clean models given")
    known = clean_models().get(SEARCHES.get(method, method))
    if known is None or not same_settings(known["settings"], options):
        return None
    by_data = known["models"]
    if data in by_data:
        values, what = by_data[data], f"clean models of {data}"
    else:
        values = [value for part in by_data.values() for value in part]
        what = f"clean models of {', '.join(by_data)}"
    return Odds(count_as_far(values, value), len(values), what)


def same_settings(settings, options):
    """Whether the options are among those that the clean models' indices hold for."""
    given = {key: as_list(options.get(key)) for key in settings}
    return all(
        given[key] == value or (isinstance(value, list) and given[key] in value)
        for key, value in settings.items()
    )


def as_list(value):
    """A tuple as a list, as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def count_as_far(values, value):
    """How many of the values are `value` or more."""
    return sum(other >= value for other in values)
