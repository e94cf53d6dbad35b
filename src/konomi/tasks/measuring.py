"""The loss on held-out images, of the model in training or of the untouched base."""

from collections.abc import Sequence

from torch import Tensor, nn

from konomi.data.batch import Examples
from konomi.diffusion.random import Rng
from konomi.methods.denoising import DenoisingLoss
from konomi.methods.method import Phase, RewordsCaptions
from konomi.models.modes import eval_mode
from konomi.tasks.preparing import Job
from konomi.training.validation import validation_loss


def held_out_loss(
    job: Job, held_out: Sequence[Examples], phase: Phase | None, modules: Sequence[nn.Module]
) -> float:
    """Of the model as `phase` trains it, or (None) of the untouched base; worded as in training
    either way.

    `modules`: what is in training mode, dropout among it.
    """
    process = job.base.process
    timesteps = process.spread_timesteps(job.recipe.validation.timesteps, job.recipe.objective)
    denoising = DenoisingLoss(job.base, job.recipe)

    def loss(examples: Examples, rng: Rng, timesteps_B: Tensor) -> Tensor:
        if isinstance(job.method, RewordsCaptions):
            examples = job.method.captioned(examples, rng)
        if phase is not None and phase.per_example is not None:
            return phase.per_example(examples, rng, timesteps_B)
        return denoising.per_example(examples, rng, timesteps_B=timesteps_B)

    with eval_mode(*modules):
        return validation_loss(loss, held_out, timesteps, process, job.processes.device)
