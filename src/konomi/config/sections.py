"""The sections of a recipe: what each setting is, its bounds, its default, and what it does.

Each setting is explained once, here, in the text under it. The command line, the commented recipe,
the web form and the documentation tables all read that text through `konomi.config.schema`.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from konomi.config.bounds import STRICT, Decay, Fraction, NonNegative, Positive, Size
from konomi.config.generation import GenerationConfig
from konomi.config.rates import checked_rates


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """One place images come from."""

    __pydantic_config__ = STRICT

    path: str
    """A folder (plain, or kohya's `10_sks dog` folders), a .zip, a metadata.jsonl or .csv, a
    dataset .toml of sd-scripts, or .tar shards. In a recipe file relative to the file's folder, as
    all paths there."""
    role: Literal["train", "prior"] = "train"
    """`train`: what to learn. `prior`: pictures of the class, so that the model does not forget it
    (regularisation images)."""
    repeats: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """How often each image is seen in one epoch. A kohya folder name such as `10_sks dog`
    multiplies it."""
    trigger: str = ""
    """The word that will call up what was learned, e.g. `sks`. Put in front of captions that do
    not have it."""
    class_noun: str = ""
    """What the subject is in plain words, e.g. `dog`."""
    template: str = ""
    """Caption for images without one; `[name]` is the trigger and class, `[filewords]` the words
    of the file name or caption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionConfig:
    """How captions are read and varied."""

    __pydantic_config__ = STRICT

    separator: str = ","
    """What divides tags in a caption."""
    lines: Literal["joined", "alternatives"] = "joined"
    """A caption file of several lines: `joined` to one caption, or a caption a line of which one
    is taken each time."""
    keep_tokens: NonNegative = 0
    """How many leading tags stay in place (and are never dropped) when tags are shuffled or
    dropped."""
    shuffle: bool = False
    """Put the tags of a caption in a new order each time it is seen."""
    tag_dropout: Fraction = 0.0
    """Chance of leaving out each single tag."""
    dropout: Fraction = 0.0
    """Chance of training on the empty caption instead; 0.05 to 0.1 keeps guidance strong in long
    full fine-tunes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketConfig:
    """Which image sizes are trained."""

    __pydantic_config__ = STRICT

    kind: Literal["area", "novelai", "fixed"] = "area"
    """`area`: sd-scripts' buckets of about equal area; `novelai`: NovelAI's list (19 sizes for
    768x512); `fixed`: one size."""
    step: NonNegative = 0
    """Bucket sides are multiples of this many pixels; 0 takes an eighth of the resolution, at most
    64."""
    min_side: NonNegative = 0
    """Shortest bucket side in pixels; 0 takes half the resolution."""
    max_side: NonNegative = 0
    """Longest bucket side in pixels; 0 takes twice the resolution."""
    upscale: bool = True
    """Enlarge images that are smaller than their bucket. When off, a small image gets a bucket of
    its own size (kind `area`)."""
    max_ratio_error: Annotated[float, Field(gt=0)] = 4.0
    """An image whose aspect ratio is further than this from every bucket is left out, and
    listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How pixels are prepared."""

    __pydantic_config__ = STRICT

    crop: Literal["center", "random"] = "center"
    """Where the part beyond the bucket is cut off."""
    crops: Positive = 1
    """Different random crops kept per image in the cache."""
    flip: bool = False
    """Also show each image mirrored. Leave off for asymmetric subjects and text."""
    alpha: Literal["background", "mask"] = "background"
    """Transparent pixels: lay the image on `background`, or also weight the loss by opacity."""
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$", examples=["#ffffff"])] = (
        "#ffffff"
    )
    """Colour put behind transparent images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """What is computed once and kept."""

    __pydantic_config__ = STRICT

    latents: Literal["disk", "memory", "off"] = "disk"
    """Where encoded images are kept. `off` encodes every time, with a fresh crop."""
    text: Literal["disk", "memory", "off"] = "disk"
    """Where encoded captions are kept, as long as the text encoder itself is not trained."""
    folder: str = ""
    """Where disk caches lie; empty means the user's cache folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Images and captions."""

    __pydantic_config__ = STRICT

    sources: tuple[SourceConfig, ...] = ()
    """Where the images are. Several sources are trained together."""
    resolution: Size | None = None
    """Training size, `512` or `768x512`; by default the base model's own."""
    workers: NonNegative = 2
    """Threads that prepare images in the background. The result does not depend on it."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    """How captions are read and varied."""
    buckets: BucketConfig = field(default_factory=BucketConfig)
    """Which image sizes are trained."""
    images: ImageConfig = field(default_factory=ImageConfig)
    """How pixels are prepared."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """What is computed once and kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestepConfig:
    """Which times a base of flow matching is trained at."""

    __pydantic_config__ = STRICT

    distribution: Literal["auto", "uniform", "logit_normal"] = "auto"
    """`uniform`, or `logit_normal`, more in the middle (Esser et al. 2024, equation 19; sd-scripts
    and ai-toolkit call it `sigmoid`); auto: the base's own."""
    mean: Annotated[float, Field(ge=-5, le=5)] = 0.0
    """Of the normal distribution behind `logit_normal`; above 0 prefers noise."""
    std: Annotated[float, Field(gt=0, le=5)] = 1.0
    """Its deviation (sd-scripts' `sigmoid_scale`)."""
    shift: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Move times towards noise, as larger pictures need: s t / (1 + (s - 1) t) (Esser et al. 2024,
    equation 23; sd-scripts' `discrete_flow_shift`); 1 moves nothing, 0 takes the base's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """What the denoiser learns to predict, and how its error is weighted."""

    __pydantic_config__ = STRICT

    loss: Literal["mse", "huber", "l1"] = "mse"
    """Distance between prediction and target. Huber forgives outliers."""
    huber_delta: Annotated[float, Field(gt=0)] = 0.1
    """Where Huber turns from square to straight."""
    weighting: Literal["none", "min_snr", "debiased", "cosmap"] = "none"
    """Weight of each noise level: min-SNR (Hang et al. 2023) or debiased estimation (Yu et al.
    2023); for bases of flow matching cosmap (Esser et al. 2024)."""
    snr_gamma: Annotated[float, Field(gt=0)] = 5.0
    """Ceiling of min-SNR weighting."""
    noise_offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Noise that shifts a whole channel, so that very dark and very bright images can be learned;
    0.03 to 0.1."""
    input_perturbation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Extra noise on the input only (Ning et al. 2023); 0.1."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that the last step is pure noise (Lin et al. 2023). For
    v-prediction bases. Previews are drawn and the result is marked accordingly; a base that is
    marked so is trained so in any case."""
    min_timestep: Annotated[int, Field(ge=0, le=999)] = 0
    """Smallest timestep trained; for bases of flow matching in thousandths of the time."""
    max_timestep: Annotated[int, Field(ge=0, le=999)] = 999
    """Largest timestep trained."""
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    """Which times a base of flow matching is trained at."""
    masked: bool = True
    """Weight the loss by the image's mask where it has one: `x-masklabel.png` (0 to 1) or
    `x_att.png` (0 to 5) beside `x.png`, or its opacity (`data.images.alpha`)."""
    prior_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the prior (class) images' loss, where the recipe has such images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """How weights move."""

    __pydantic_config__ = STRICT

    kind: Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free"] = "adamw"
    """The algorithm. adamw8bit keeps a byte for each moment instead of four, in tensors of 4,096
    values or more; adafactor keeps no moment but a mean of squares for each row and column;
    prodigy finds the step size itself. adamw8bit, lion, prodigy and schedule_free come with `pip
    install 'konomi[optimizers]'`."""
    learning_rate: Annotated[float, Field(ge=0, le=10)] | None = None
    """Step size; by default what suits the method and the algorithm. With prodigy a factor of the
    step size that it finds, by default 1."""
    text_learning_rate: Annotated[float, Field(ge=0, le=10)] | None = None
    """Step size of the text encoder's part; by default half the other."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Pull towards zero."""
    betas: tuple[Decay, Decay] | None = None
    """Memory of the running mean and of the running square; by default 0.9 and 0.999, for lion 0.9
    and 0.99."""
    schedule: Literal["constant", "linear", "cosine", "cosine_restarts", "polynomial"] = "constant"
    """How the learning rate falls over the run, after warm-up."""
    rates: Annotated[str, AfterValidator(checked_rates)] = ""
    """Learning rates by step, in place of `learning_rate` and `schedule`, as web UIs write them:
    `5e-3:200, 1e-3:1000, 1e-4` is 5e-3 up to step 200, 1e-3 up to step 1000, then 1e-4."""
    warmup: Annotated[float, Field(ge=0)] = 0.0
    """Steps of rising learning rate at the start; a value below 1 is a share of all steps
    (0.06)."""
    schedule_steps: NonNegative = 0
    """Length of `schedule` and of a `warmup` that is a share, in steps; beyond it the last rate
    stays. 0: the run's."""
    cycles: Positive = 1
    """Restarts of `cosine_restarts`."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Exponent of `polynomial`."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Longest gradient allowed; 0 switches clipping off."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Keep a running average of the weights and save that; 0.999 or 0.9999 for long full
    fine-tunes, 0 for none."""

    def __post_init__(self) -> None:
        """Raises ValueError where `rates` is not alone."""
        if self.rates and (self.learning_rate is not None or self.schedule != "constant"):
            raise ValueError(
                "rates stands in place of learning_rate and schedule: leave those out, or rates"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How long, where to, how often. Everything counted in optimiser steps."""

    __pydantic_config__ = STRICT

    output: str = ""
    """The run folder; by default runs/NAME."""
    name: str = ""
    """Name of the result; by default the trigger or the images' folder."""
    steps: NonNegative = 0
    """Steps in all (a total, also after resuming). 0 means: use `epochs`."""
    epochs: NonNegative = 0
    """Times through the images, in all. With 0 here and in `steps`, the method's own default
    counts."""
    batch_size: Positive = 1
    """Images behind one optimiser step, over all processes and micro-batches together."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Decides order, noise and timesteps. The same seed gives the same result."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the computation; auto: bf16 where the device is good at it, else fp16 on
    CUDA, else fp32."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    checkpoint_every: NonNegative = 100
    """Write a state to resume from every so many steps; one is always written at the end. 0: only
    at the end."""
    keep_checkpoints: Positive = 2
    """How many such states are kept."""
    save_every: NonNegative = 0
    """Write the result file as it is, every so many steps, as `NAME-step00000500`. 0: only at the
    end."""
    save_every_epochs: NonNegative = 0
    """The same every so many epochs, as `NAME-000010` (kohya's names for both). 0: only at the
    end."""
    preview_every: NonNegative | Literal["auto"] = "auto"
    """Draw the previews every so many steps, before the first and after the last. auto: before the
    first, four times on the way and after the last, as long as all of them take at most 15 % of
    the run's time, or 20 seconds, else after the last alone; none where the environment says
    KONOMI_PREVIEWS=off. 0: none."""
    validate_every: NonNegative = 0
    """Measure the loss on held-out images every so many steps. 0: never."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Where losses and previews are shown beside log.jsonl; may be empty. wandb (Weights & Biases)
    comes with `pip install 'konomi[trackers]'`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """Trade speed for memory."""

    __pydantic_config__ = STRICT

    accumulation: Positive = 1
    """Split each batch into this many micro-batches (gradient accumulation). Same result, less
    memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about 40 % slower, much less memory."""
    offload: bool = True
    """Take text encoder and VAE off the device once everything they do is cached."""
    compile: bool = False
    """torch.compile the denoiser; pays off only in long runs on CUDA."""
    channels_last: bool = False
    """Memory layout that some GPUs like better."""
    storage_dtype: Literal["auto", "bf16", "fp16"] = "auto"
    """Number format in which the denoiser's frozen weights are kept while `run.precision` is fp32
    (diffusers calls it layerwise casting): half their memory, for a cast at every use. fp16
    changes no result where the base's file is fp16. Previews are drawn with these weights too.
    auto: the computation's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """How captions become conditions."""

    __pydantic_config__ = STRICT

    clip_skip: Annotated[int, Field(ge=0, le=12)] = 0
    """Which layer of CLIP from the end: 1 the last, 2 the one before; 0 is the base's own
    choice."""
    max_tokens: Annotated[int, Field(ge=75, le=750, multiple_of=75)] = 75
    """Longest caption in tokens, in chunks of 75."""
    emphasis: bool = False
    """Read `(word:1.2)` and `BREAK` in captions. Prompts for previews always do."""
    chunking: Literal["novelai", "sd_scripts"] = "novelai"
    """Where chunks join: keep each chunk's start and end tokens (77, 154, 231 positions), or strip
    the inner ones (227)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewConfig(GenerationConfig):
    """The pictures drawn while training."""

    __pydantic_config__ = STRICT

    prompts: tuple[str, ...] = ()
    """What to draw; by default the trigger, the trigger in another place, the class alone and
    something unrelated."""
    size: Size | None = None
    """Picture size; by default the training size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """The loss on images that are not trained on."""

    __pydantic_config__ = STRICT

    path: str = ""
    """Images for validation; empty: hold out `fraction` of the training images."""
    fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the images held out when `path` is empty and `run.validate_every` is set. At least
    one image."""
    timesteps: Positive = 8
    """Evenly spread noise levels at which each image is measured, always with the same noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveConfig:
    """The result file."""

    __pydantic_config__ = STRICT

    format: Literal["auto", "kohya", "webui", "diffusers", "peft", "custom", "checkpoint"] = "auto"
    """Adapters: `webui` (A1111, ComfyUI; for a LoRA the same as `kohya`, sd-scripts), `diffusers`,
    `peft`, `custom` (Custom Diffusion's delta.bin). Whole models: `checkpoint` (one file) or
    `diffusers` (a folder). auto: what most programs read of such a result."""
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Number format in the file."""
    comment: str = ""
    """A sentence of yours that is kept in the file's metadata."""
