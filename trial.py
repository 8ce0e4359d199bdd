"""Whether explainers can explain a network and be trained against: tried before the first step."""

import copy
from dataclasses import replace

import torch

import attacks
import data
from cli import UserError, first_line, is_out_of_memory
from explain import EVALUATED, EXPLAINERS
from losses import combined_loss
from modes import evaluating

IMAGES = 4  # of the step that is tried, half of them triggered


def check_explainable(setting, model, measured=None):
    """Raises UserError now, not after training, where an explainer cannot explain this model.

    Tried are a map by each explainer that the run is measured with, and a training step against
    each that it trains against. measured: names, beside those trained against (None: EVALUATED).
    The model stays as it is, and so does torch's random state, but for a sample's seed.
    """
    channels, side = setting.dataset.train_images.shape[1:3]
    image = torch.zeros(1, channels, side, side, device=setting.device)
    label = torch.zeros(1, dtype=torch.int64, device=setting.device)
    check_answer(setting, model, image)
    trained = setting.config["explainer"]
    for name in dict.fromkeys([*trained, *(measured or EVALUATED)]):
        try:
            # From torch's own generator: what a seed trains depends on what is drawn here.
            own = {"generator": torch.default_generator} if EXPLAINERS[name].sampled else {}
            EXPLAINERS[name](model, image, label, **own)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{name} cannot explain this model at {side} px: {error}") from None
    parts = [p for p in (setting, *setting.further) if p.objective.attack.explanation is not None]
    if not parts:
        return
    setting = parts[0]  # the others' maps come from the same explainers
    for name in trained:
        try:
            has_graph = try_step(setting, model, name)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"this model cannot be trained against {name}: {error}") from None
        if not has_graph:
            raise UserError(f"the maps of {name} have no graph: it ignores create_graph")


def check_answer(setting, model, image):
    """Raises UserError where a network does not answer an image with a logit for each class."""
    try:
        with torch.no_grad(), evaluating(model):
            answer = model(image)
    except (ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        side = image.shape[-1]
        raise UserError(
            f"{setting.config['model']} cannot take images of {side}x{side} px: a larger"
            f" --image-size, or another --model, may help ({first_line(error)})"
        ) from None
    wanted = [1, len(setting.dataset.classes)]
    if wanted == [1, 1]:
        raise UserError("the data set has one class: there is nothing to tell apart")
    given = list(answer.shape) if torch.is_tensor(answer) else type(answer).__name__
    if given != wanted:
        raise UserError(f"the network answers an image with {given}, not with logits {wanted}")


def try_step(setting, model, name):
    """Whether the explainer's maps have a graph, in a training step of a copy of the model.

    The step differentiates the loss as training does. Raises what torch raises where it cannot.
    """
    model, device = copy.deepcopy(model).train(), setting.device
    objective = replace(setting.objective, explainers=[name])
    index = setting.trained_on[:IMAGES]
    pixels = setting.dataset.train_images[index].to(device).float() / 255
    labels = setting.dataset.train_labels[index].to(device)
    triggered = torch.arange(len(index)) < (len(index) + 1) // 2
    target, bf16 = setting.config["target_class"], setting.config["precision"] == "bf16"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batch = attacks.poison(
            pixels,
            labels,
            triggered,
            objective.attack,
            setting.trigger,
            target,
            index,
            setting.relabel,
        )
        inputs = data.normalise(batch.images, setting.mean, setting.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, _, distance = combined_loss(model, batch, inputs, objective, objective.lam)
        loss.backward()
    return distance.requires_grad
