"""What scorers run for `trainer_examples.train_with_scorers`; the service finds it by its name:

sampler-service up --scorers 1 --scoring trainer_examples.scoring:digits
"""

from __future__ import annotations

from sampler_service.scoring import Scoring
from trainer_examples.data import load
from trainer_examples.models import make_model


def digits(dataset: str) -> Scoring | None:
    """scikit-learn's digits: the trainer's model, without its weights, and its training images in the same order."""
    if dataset != "digits":
        return None
    images = load()
    return Scoring(model=make_model(images.image_shape, images.num_classes), records=images.train)
