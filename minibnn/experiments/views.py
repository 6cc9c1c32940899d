"""How a checkpoint is drawn in an experiment: the sampler, the guidance, the weights and the starting noise."""

from dataclasses import dataclass

from .. import schedule
from ..neighbours import guidance


@dataclass(frozen=True)
class View:
    """How a checkpoint draws. average: with the running mean of μ; base: with ε(∅) of the pretrained model; colour:
    from noise whose mean colour is that of the training pictures, seen through the noise (`schedule.with_mean`);
    strength: from noise of a standard deviation of exactly 1 (`schedule.with_strength`)."""

    sampler: str = "ddim"
    steps: int = 25
    guidance: float = 3.0
    average: bool = False
    base: bool = False
    eta: float = 0.0
    colour: bool = False
    strength: bool = False

    @property
    def name(self):
        extra = f"-eta{self.eta:g}" * bool(self.eta) + "-average" * self.average + "-base" * self.base
        extra += "-colour" * self.colour + "-strength" * self.strength
        return f"{self.sampler}-{self.steps}-g{self.guidance:g}{extra}"

    def start(self, mean):
        """What `sample.generate` takes as `start`: mean (C,), that of the training pictures' latents."""
        def changed(noise, abar_t):
            noise = schedule.with_mean(mean, noise, abar_t) if self.colour else noise
            return schedule.with_strength(noise) if self.strength else noise

        return changed


def draw(sd, view, prompts, seed, batch_size, base=None, mean=None):
    """Pictures of the prompts, drawn as the view says with the weights that `sd` has now: a list of PIL images.

    For a view with `average` the caller puts the running mean in. base: the pretrained model, for a view with `base`.
    mean: as for `View.start`, for a view with `colour`.
    """
    predictor = guidance.one_condition(sd, guidance.unconditional_of(base, sd)) if view.base else None
    return sd.generate(prompts, view.steps, view.guidance, seed=seed, sampler=view.sampler, eta=view.eta,
                       batch_size=batch_size, progress=False, predictor=predictor, start=view.start(mean))
