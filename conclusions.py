"""What follows from the parts of an audit, in words: what stands out, how sure, what to do next.

Pure functions of the parts' verdicts, and no more is said than they hold. report_page.py and the
terminal print the same sentences.
"""

import math
from dataclasses import dataclass, field

from defences import PUBLISHED_THRESHOLD, Verdict
from defences.clean_maps import CHANCE
from findings import hardly_knows
from odds import CLEAN_NEEDED, INCONCLUSIVE, NOTHING, STANDS_OUT
from terminal import counted

# How often `decide` says that something stands out, and among how many: of the networks of
# results/audits.json, each clean one judged beside the other clean ones of its data. The rule, and
# Neural Cleanse's index, were chosen on these very networks: on others it is likely somewhat worse.
CLEAN = (5, 30)
BACKDOORED = (15, 15)
DISGUISED = (13, 15)
NAMED = PUBLISHED_THRESHOLD  # of both methods; of Neural Cleanse, half the median mask
AGREES = 0.5  # correlation of two explainers' maps; below, they tell different stories
ONE_MAP = 0.9  # correlation of maps of different images; above, one map serves all
CLASSES_NAMED = 3


@dataclass
class Outcome:
    """One part of an audit.

    title: what it asks; meaning: how its answer is read.
    verdict: None where there is none, and reason says why.
    seconds: how long it took; record: its verdict.json, plain values.
    """

    name: str
    title: str
    meaning: str = ""
    verdict: Verdict | None = None
    reason: str | None = None
    seconds: float = 0.0
    record: dict = field(default_factory=dict)


@dataclass
class Conclusion:
    """What an audit says.

    backdoored: True, False, or None for inconclusive; flagged: numbers of classes.
    heading: one line; meaning: what it means for whoever would use the network.
    found, sure, unseen: sentences; steps: (sentence, command line or None).
    """

    backdoored: bool | None
    flagged: list
    heading: str
    meaning: str
    found: list
    sure: list
    unseen: list
    steps: list


# ---------------------------------------------------------------- how sure


def word_of(verdict):
    """STANDS_OUT, INCONCLUSIVE or NOTHING, or None of a part that gives no answer."""
    odds = verdict.details.get("odds")
    if odds is not None:
        return odds["word"]
    if verdict.backdoored is None:
        return INCONCLUSIVE if verdict.index else None
    return STANDS_OUT if verdict.backdoored else NOTHING


def how_sure(verdict):
    """One sentence: what a part's answer is worth, by how often clean networks get as far."""
    largest = f"its largest index is {max(verdict.index.values()):.1f}"
    if odds := verdict.details.get("odds"):
        return f"{largest}; {odds['sentence']}."
    return f"{largest}; no clean networks were asked with these options."


def decide(words, named):
    """Whether a network is backdoored: True, False, or None for inconclusive.

    words: {method: its word}; named: {method: the classes above NAMED}.
    Something stands out where a method says so, or where two methods name the same class. With no
    word at all the answer is None.
    """
    said = [word for word in words.values() if word is not None]
    if STANDS_OUT in said or agreed(named):
        return True
    return None if not said or INCONCLUSIVE in said else False


def agreed(named):
    """The classes that two methods or more name, in order."""
    every = [k for classes in named.values() for k in classes]
    return sorted({k for k in every if every.count(k) > 1})


def named_by(outcomes):
    """{method: the classes whose index is above NAMED}."""
    return {
        part.name: {k for k, value in part.verdict.index.items() if value > NAMED}
        for part in outcomes
        if part.verdict and part.verdict.index
    }


# ---------------------------------------------------------------- what stands out


def conclude(outcomes, classes, source, accuracy=None):
    """The Conclusion of an audit.

    outcomes: of all parts; classes: the names; source: what stands in a command line for this
    network; accuracy: (of the network, of a constant answer) on the clean images, or None.
    """
    judging = [part for part in outcomes if part.verdict]
    words = {part.name: word_of(part.verdict) for part in judging}
    named = named_by(outcomes)
    backdoored = decide(words, named)
    enough = (STANDS_OUT,) if STANDS_OUT in words.values() else (INCONCLUSIVE,)
    flagged = agreed(named) or [
        top_class(part.verdict)
        for part in judging
        if part.verdict.index and words[part.name] in enough
    ]
    flagged = sorted(set(flagged))
    edited = any(part.verdict.details.get("findings") for part in judging)
    if backdoored is False and not any(part.verdict.index for part in judging):
        backdoored = None  # nothing that asks about classes could be applied
    lost = accuracy is not None and hardly_knows(*accuracy)
    backdoored = None if lost else backdoored
    if backdoored is False:
        flagged = []
    found = [sentence_of(part, words[part.name], classes) for part in judging]
    found += where_flagged(judging, flagged, classes)
    if lost:
        found.insert(0, not_learnt(accuracy))
    return Conclusion(
        backdoored,
        flagged,
        heading_of(backdoored, flagged, classes, lost, edited),
        meaning_of(backdoored, flagged, lost, edited),
        [sentence for sentence in found if sentence],
        sureness(judging, named, classes),
        unseen(outcomes),
        steps(backdoored, flagged, classes, source, lost, any(p.verdict.index for p in judging)),
    )


def top_class(verdict):
    """The number of the class with the largest anomaly index."""
    return max(verdict.index, key=verdict.index.get)


def names_of(flagged, classes):
    """The names of classes, the first few of many, as they stand in a sentence."""
    names = [f"'{classes[k]}'" for k in flagged[:CLASSES_NAMED]]
    more = f" and {len(flagged) - CLASSES_NAMED} more" if len(flagged) > CLASSES_NAMED else ""
    return ("class " if len(flagged) == 1 else "classes ") + ", ".join(names) + more


def heading_of(backdoored, flagged, classes, lost, edited):
    """The answer, one line; edited: whether somebody wrote into the weights."""
    if lost:
        return "Inconclusive: the network does not know these pictures."
    whom = f": {names_of(flagged, classes)}" if flagged else ""
    if backdoored:
        whom += f"{';' if whom else ':'} somebody wrote into the weights" if edited else ""
        return f"Something stands out{whom}."
    if backdoored is None:
        return f"Inconclusive{whom or ': no method that gives an answer could be applied'}."
    return "Nothing stands out."


def meaning_of(backdoored, flagged, lost, edited):
    """What the answer means for whoever would use the network."""
    if lost:
        return "Ask it as it was trained, and audit it again."
    changed = "It was changed after its training. Ask where it comes from before you use it."
    if backdoored and not flagged:
        return changed
    if backdoored:
        one = len(flagged) == 1
        targets = "This class may be the target" if one else "These classes may be targets"
        return (changed + " " if edited else "") + (
            f"{targets} of a backdoor: a small mark in a picture may make the network answer"
            f" {'it' if one else 'one of them'}, whatever is shown. Look closer before you use the"
            " network."
        )
    if backdoored is None:
        return "This audit can say neither that the network is clean nor that it is backdoored."
    return (
        "No part that asks about the network found more than clean networks show, too. A backdoor"
        " that these methods do not see may be there all the same."
    )


def not_learnt(accuracy):
    """The sentence about a network that is hardly better than a constant answer."""
    own, constant = (f"{100 * value:.0f}%" for value in accuracy)
    return (
        f"It is right on {own} of the pictures, where one constant answer is right on {constant}:"
        " the pictures, their normalisation or the order of the classes is not what it was trained"
        " with. What follows says little."
    )


def sentence_of(part, word, classes):
    """What one part found, a sentence; "" of one that only draws."""
    verdict = part.verdict
    if verdict.index:
        k = top_class(verdict)
        class_name = names_of([k], classes)
        at = f"most unlike the others is {class_name}, index {verdict.index[k]:.1f}"
        return f"{part.title} By itself {its_word(word)}; {at}."
    details = verdict.details
    if "image" in details:
        return picture_sentence(part.title, details["image"])
    if "findings" in details:
        count = len(details["findings"])
        seen = f"It looks so: {counted(count, 'trace')}" if count else "No trace was found"
        return f"{part.title} {seen}."
    if "median" in details:
        return f"{part.title} {agreement_words(1 - details['median'])}."
    if "floor" in details:
        return floors_sentence(part.title, details)
    return ""


def picture_sentence(title, picture):
    """What one part says of the picture that is suspected."""
    word = "it looks attacked" if picture["attacked"] else "it does not look attacked"
    return f"{title} {picture['path']}: {word}: {picture['reason']}."


def agreement_words(correlation):
    """How far explainers agree, in words; correlation: of their maps, the median over images."""
    figure = f"the maps of one picture correlate by {correlation:.2f} (1: the same map)"
    if correlation < AGREES:
        return f"Hardly: {figure}; take neither as evidence by itself"
    return f"By and large: {figure}"


def its_word(word):
    """The word of one part, as its sentence goes on."""
    return {STANDS_OUT: "a class stands out", INCONCLUSIVE: "it is inconclusive"}.get(word, word)


def floors_sentence(title, details):
    """How far the maps depend on the picture."""
    same = [name for name, value in details["floor"].items() if value and value > ONE_MAP]
    figures = ", ".join(
        f"{'blank maps' if math.isnan(value) else f'{value:.2f}'} ({name})"
        for name, value in details["floor"].items()
    )
    note = f"; {', '.join(same)}: nearly one map for all pictures" if same else ""
    missing = "".join(f"; {name} cannot explain this network" for name in details["refused"])
    correlate = f"The maps of different pictures correlate by {figures} (near 1: one map for all)"
    return f"{title} {correlate}{note}{missing}."


def where_flagged(judging, flagged, classes):
    """Where the maps of the flagged classes lie, a sentence each."""
    sentences = []
    for part in judging:
        patches = part.verdict.details.get("patches", {})
        sentences += [
            f"The smallest patch for {names_of([k], classes)}: {100 * patches[k]['share']:.0f}% of"
            f" it lies in one place, {patches[k]['where']}. Look at its figure."
            for k in flagged[:CLASSES_NAMED]
            if k in patches
        ]
    every = [part.verdict.details.get("places", {}) for part in judging]
    for name, by_class in [item for found in every for item in found.items()]:
        for k in flagged[:CLASSES_NAMED]:
            own = by_class[k]
            if math.isnan(own["alike"]):
                sentences.append(f"Maps of {name} for {names_of([k], classes)} are blank.")
                continue
            rank = sum(other["alike"] > own["alike"] for other in by_class.values()) + 1
            sentences.append(
                f"Maps of {name} for {names_of([k], classes)} put {100 * own['share']:.0f}% in one"
                f" place, {own['where']} (an even map: {100 * CHANCE:.0f}%), and are number {rank}"
                f" of {len(by_class)} classes in being alike from picture to picture."
            )
    return sentences


# ---------------------------------------------------------------- how sure, what next


def share(counts):
    """Counts in words."""
    return f"{counts[0]} of {counts[1]}"


def sureness(judging, named, classes):
    """Sentences on what the answer is worth."""
    sentences = []
    both = agreed(named)
    if both:
        sentences.append(
            f"Two methods, each on its own, find {names_of(both, classes)} unusual: the index is"
            f" above {NAMED:g}."
        )
    for part in judging:
        if part.verdict.index:
            sentences.append(f"{part.name}: {how_sure(part.verdict)}")
    if not any(part.verdict.index for part in judging):
        return [
            "No part that asks about the classes could be applied: only the rest was looked at."
        ]
    sentences.append(
        f"Of the small networks this page's rule was chosen on, something stood out in"
        f" {share(CLEAN)} clean ones, in {share(BACKDOORED)} with a plain backdoor, and in"
        f" {share(DISGUISED)} that were also trained to hide it; on others it is likely somewhat"
        " worse. An answer is a reason to look closer, not a proof."
    )
    return sentences


def unseen(outcomes):
    """Sentences on what this audit cannot see; what could not be applied is named."""
    sentences = [
        f"{part.title} Not done: {part.reason.rstrip('.')}." for part in outcomes if part.reason
    ]
    return sentences + [
        "A trigger that is not a small patch: a faint pattern over the whole picture, a natural"
        " object, a change of colour or shape.",
        "A backdoor with several target classes, or one that only turns pictures of some classes.",
        "A backdoor whose explanations were trained to look clean hides from most of this: on a"
        " clean picture its explanations are like an honest network's, and need not lie where its"
        " patch does.",
        "What was in the training data. The audit sees the network and some clean pictures alone.",
    ]


def steps(backdoored, flagged, classes, source, lost=False, asked=True):
    """What to do next: (sentence, command line or None); asked: whether any part has an index."""
    repeat = f"python defend.py audit {source} --seed 1 --clean-images 1000 --out audit-again"
    if lost:
        told = "Are these the pictures, and the classes in the order, of its training?"
        if "--weights" in source:
            told = "Are --mean, --std, --image-size and the order of the classes right?"
        return [(f"{told} It is measured:", f"python evaluate.py {source}")]
    if not asked:
        first = [("Ask where it comes from before you use it.", None)] if backdoored else []
        return [*first, ("Prefer a network whose training you can repeat.", None)]
    if backdoored is False:
        return [
            ("This is no proof that it is clean. Before it matters, look again with others of the"
             " pictures:", repeat),
            ("Prefer a network whose training you can repeat.", None),
        ]  # fmt: skip
    result = [
        ("Look again with other pictures. Where the same class comes out with a small, compact"
         " patch, take it for a backdoor; where another or none does, it was likely chance:",
         repeat),
    ]  # fmt: skip
    if flagged:
        result += looking_closer(names_of(flagged, classes), source)
    if backdoored:
        result.append(("Until that is settled, do not use it where it can do harm.", None))
    if backdoored and flagged:
        result += repairs(source)
    return result + [
        ("Compare it with networks of the same kind that you know to be clean,"
         f" {CLEAN_NEEDED} or more. Only then do you know how often this page says so for nothing:",
         f"python defend.py audit {source} --calibrate CLEAN-1.pt CLEAN-2.pt ..."),
    ]  # fmt: skip


def looking_closer(whose, source):
    """Steps that look for the trigger of classes; whose: their names, in words."""
    slower = f"python defend.py neural_cleanse {source} --clean-images 1000"
    slower += " --rounds 1000 --round-images 1000 --seed 1"
    return [
        ("Search for the patch as thoroughly as it was published (hours), and look at it: a small,"
         " sharp mark is a trigger, a picture of the class is not:", slower),
        (f"Collect pictures that are wrongly answered as {whose}, and look for what they have in"
         " common.", None),
    ]  # fmt: skip


def repairs(source):
    """Steps that take a backdoor out."""
    return [
        ("If you cannot train it anew, take the channels out that the patch excites, and measure"
         " what is left:", f"python defend.py prune {source}"),
        ("or train it on for a few epochs on clean pictures with labels, which any repair must"
         " beat:", f"python defend.py finetune {source}"),
    ]  # fmt: skip
