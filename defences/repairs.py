"""What is said and kept of a repaired network, whatever repaired it."""

import torch

from cli import replace_file, user_errors
from edited import plain_state

TOLERATED = 0.02  # of accuracy that a repair may cost, and of success that is no fall
IMAGES_COMPARED = 16  # that a pruned network and its plain weights must answer alike


def faults(before, after):
    """What a repair made worse, or left as it was, in words: a list of strings.

    before, after: evaluate.py's metrics. Success of TOLERATED or less is none: a clean model is not
    asked to lose it.
    """
    found = []
    most = TOLERATED + 1e-9  # a loss of TOLERATED itself is allowed
    for key in ("clean_accuracy", "mean_auroc"):
        if None not in (before[key], after[key]) and before[key] - after[key] > most:
            points = 100 * (before[key] - after[key])
            found.append(f"{key.replace('_', ' ')} fell by {points:.1f} points")
    was, now = before["attack_success_rate"], after["attack_success_rate"]
    if None not in (was, now) and now > TOLERATED:
        if now > was:
            found.append(f"attack success rose from {was:.3f} to {now:.3f}")
        elif was - now <= most:
            found.append(f"attack success did not fall: {was:.3f}, and now {now:.3f}")
    return found


def write_weights(audit, model, folder):
    """Writes a repaired network's weights as repaired.pth, if they fit: a line about it.

    They have the names of the network's own weights, without a wrapper's before them.
    """
    with user_errors():
        state = plain_state(model, audit.inputs[:IMAGES_COMPARED])
    if state is None:
        return "\nNo repaired.pth: the repaired network does not fit its former architecture."
    state = {key: value.cpu() for key, value in state.items()}
    replace_file(folder / "repaired.pth", lambda path: torch.save(state, path))
    return "\nThe weights, under their own names, as load_state_dict takes them: repaired.pth"
