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
    """One place that images are read from."""

    __pydantic_config__ = STRICT

    path: str
    """A folder (plain, or with kohya's `10_sks dog` subfolders), a .zip, a metadata.jsonl or .csv,
    an sd-scripts dataset .toml, or .tar shards. In a recipe file, this and all other paths are
    relative to the file's folder."""
    role: Literal["train", "prior"] = "train"
    """`train`: images to learn from. `prior`: class images (regularisation images), which keep the
    model from forgetting the class."""
    repeats: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """How many times each image is seen per epoch. Multiplied by the number in a kohya folder name
    such as `10_sks dog`."""
    trigger: str = ""
    """The word that calls up what was learned, e.g. `sks`. It is put in front of captions that do
    not contain it."""
    class_noun: str = ""
    """What the subject is, in plain words, e.g. `dog`."""
    template: str = ""
    """Caption for images without one. `[name]` is replaced by trigger and class noun, `[filewords]`
    by the words of the caption or file name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionConfig:
    """How captions are read and varied."""

    __pydantic_config__ = STRICT

    separator: str = ","
    """What separates the tags of a caption."""
    lines: Literal["joined", "alternatives"] = "joined"
    """How to read a caption file with several lines: `joined` makes one caption of them;
    `alternatives` takes each line as a caption and picks one each time."""
    keep_tokens: NonNegative = 0
    """How many leading tags stay in place, and are never dropped, when tags are shuffled or dropped
    (sd-scripts' name for it)."""
    shuffle: bool = False
    """Shuffle the tags of a caption each time it is seen."""
    tag_dropout: Fraction = 0.0
    """Probability of dropping each tag."""
    dropout: Fraction = 0.0
    """Probability of training on the empty caption instead; 0.05 to 0.1 keeps guidance effective in
    long full fine-tunes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketConfig:
    """Which image sizes are trained on."""

    __pydantic_config__ = STRICT

    kind: Literal["area", "novelai", "fixed"] = "area"
    """`area`: buckets of roughly equal area, as in sd-scripts; `novelai`: NovelAI's list (19 sizes
    for 768x512); `fixed`: a single size."""
    step: NonNegative = 0
    """Bucket sides are multiples of this many pixels; 0 means an eighth of the resolution, at most
    64."""
    min_side: NonNegative = 0
    """Shortest bucket side in pixels; 0 means half the resolution."""
    max_side: NonNegative = 0
    """Longest bucket side in pixels; 0 means twice the resolution."""
    upscale: bool = True
    """Enlarge images that are smaller than their bucket. If off, a small image gets a bucket of its
    own size (kind `area`)."""
    max_ratio_error: Annotated[float, Field(gt=0)] = 4.0
    """Images whose aspect ratio differs from that of every bucket by more than this are left out
    and listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How pixels are prepared."""

    __pydantic_config__ = STRICT

    crop: Literal["center", "random"] = "center"
    """How the part of an image that does not fit its bucket is cropped off."""
    crops: Positive = 1
    """Number of different random crops cached per image."""
    flip: bool = False
    """Also train on each image mirrored. Leave it off for asymmetric subjects and for text."""
    alpha: Literal["background", "mask"] = "background"
    """Transparent pixels: `background` lays the image on the background colour; `mask` also weights
    the loss by opacity."""
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$", examples=["#ffffff"])] = (
        "#ffffff"
    )
    """Background colour behind transparent images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """What is computed once and then kept."""

    __pydantic_config__ = STRICT

    latents: Literal["disk", "memory", "off"] = "disk"
    """Where the encoded images (latents) are cached. `off` encodes them in every step, with a new
    crop each time."""
    text: Literal["disk", "memory", "off"] = "disk"
    """Where the encoded captions are cached, as long as the text encoder itself is not trained."""
    folder: str = ""
    """Folder of the disk caches; empty means the user's cache folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Images and captions."""

    __pydantic_config__ = STRICT

    sources: tuple[SourceConfig, ...] = ()
    """Where the images are. Several sources are trained on together."""
    resolution: Size | None = None
    """Training resolution, `512` or `768x512`; by default that of the base model."""
    workers: NonNegative = 2
    """Number of threads that prepare images in the background. It does not affect the result."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    """How captions are read and varied."""
    buckets: BucketConfig = field(default_factory=BucketConfig)
    """Which image sizes are trained on."""
    images: ImageConfig = field(default_factory=ImageConfig)
    """How pixels are prepared."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """What is computed once and then kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestepConfig:
    """Which timesteps a flow-matching base is trained on."""

    __pydantic_config__ = STRICT

    distribution: Literal["auto", "uniform", "logit_normal"] = "auto"
    """`uniform`, or `logit_normal`, which favours the middle (Esser et al. 2024, equation 19;
    `sigmoid` in sd-scripts and ai-toolkit); auto: the base's own."""
    mean: Annotated[float, Field(ge=-5, le=5)] = 0.0
    """Mean of the normal distribution behind `logit_normal`; values above 0 favour noisy
    timesteps."""
    std: Annotated[float, Field(gt=0, le=5)] = 1.0
    """Standard deviation of that distribution (sd-scripts' `sigmoid_scale`)."""
    shift: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Shift timesteps towards noise, as higher resolutions need: s t / (1 + (s - 1) t) (Esser et
    al. 2024, equation 23; sd-scripts' `discrete_flow_shift`). 1 means no shift, 0 the base's
    own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """What the denoiser learns to predict, and how its error is weighted."""

    __pydantic_config__ = STRICT

    loss: Literal["mse", "huber", "l1"] = "mse"
    """How prediction and target are compared. Huber is less sensitive to outliers."""
    huber_delta: Annotated[float, Field(gt=0)] = 0.1
    """Error at which the Huber loss changes from quadratic to linear."""
    weighting: Literal["none", "min_snr", "debiased", "cosmap"] = "none"
    """Loss weight of each noise level: min-SNR (Hang et al. 2023) or debiased estimation (Yu et al.
    2023); for flow-matching bases, cosmap (Esser et al. 2024)."""
    snr_gamma: Annotated[float, Field(gt=0)] = 5.0
    """Gamma of min-SNR weighting: SNRs above it are clamped."""
    noise_offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Add noise that shifts whole channels, so that very dark and very bright images can be
    learned; 0.03 to 0.1."""
    input_perturbation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Extra noise on the denoiser's input only (Ning et al. 2023); 0.1."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that the last timestep is pure noise (Lin et al. 2023). For
    v-prediction bases. Previews use the rescaled schedule and the result is marked accordingly; a
    base marked this way is always trained this way."""
    min_timestep: Annotated[int, Field(ge=0, le=999)] = 0
    """Smallest timestep trained on; for flow-matching bases in thousandths of the time from 0 to
    1."""
    max_timestep: Annotated[int, Field(ge=0, le=999)] = 999
    """Largest timestep trained on."""
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    """Which timesteps a flow-matching base is trained on."""
    masked: bool = True
    """Weight the loss by the image's mask if it has one: `x-masklabel.png` (0 to 1) or `x_att.png`
    (0 to 5) next to `x.png`, or its opacity (`data.images.alpha`)."""
    prior_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the loss on class images (prior loss), if the recipe has any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """How the weights are updated."""

    __pydantic_config__ = STRICT

    kind: Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free"] = "adamw"
    """The optimiser. adamw8bit stores each moment in one byte instead of four, for tensors of 4,096
    or more values; adafactor stores no moments, only a running mean of squares per row and column;
    prodigy estimates the learning rate itself. adamw8bit, lion, prodigy and schedule_free need `pip
    install 'konomi[optimizers]'`."""
    learning_rate: Annotated[float, Field(ge=0, le=10)] | None = None
    """Learning rate; the default depends on the method and the optimiser. With prodigy it is a
    factor on the rate that prodigy estimates, by default 1."""
    text_learning_rate: Annotated[float, Field(ge=0, le=10)] | None = None
    """Learning rate of the text encoder; by default half of `learning_rate`."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Weight decay: how strongly weights are pulled towards zero."""
    betas: tuple[Decay, Decay] | None = None
    """Decay rates of the running mean of the gradients and of their squares; by default 0.9 and
    0.999, for lion 0.9 and 0.99."""
    schedule: Literal["constant", "linear", "cosine", "cosine_restarts", "polynomial"] = "constant"
    """Learning rate schedule after warmup."""
    rates: Annotated[str, AfterValidator(checked_rates)] = ""
    """Learning rates by step, instead of `learning_rate` and `schedule`, in the notation of web
    UIs: `5e-3:200, 1e-3:1000, 1e-4` is 5e-3 up to step 200, 1e-3 up to step 1000, then 1e-4."""
    warmup: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate warmup in steps; a value below 1 is a fraction of all steps (0.06)."""
    schedule_steps: NonNegative = 0
    """Length in steps of `schedule`, and of a `warmup` given as a fraction; after it the last
    learning rate is kept. 0: the length of the run."""
    cycles: Positive = 1
    """Number of cycles of `cosine_restarts`."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Exponent of the `polynomial` schedule."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradient clipping: the largest gradient norm allowed; 0 turns clipping off."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Keep an exponential moving average (EMA) of the weights and save that; 0.999 or 0.9999 for
    long full fine-tunes, 0 for none."""

    def __post_init__(self) -> None:
        """Raises ValueError where `rates` is not alone."""
        if self.rates and (self.learning_rate is not None or self.schedule != "constant"):
            raise ValueError(
                "rates stands in place of learning_rate and schedule: leave those out, or rates"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Length, output and intervals. Intervals are counted in optimiser steps."""

    __pydantic_config__ = STRICT

    output: str = ""
    """The run folder; by default runs/NAME."""
    name: str = ""
    """Name of the result; by default the trigger or the name of the image folder."""
    steps: NonNegative = 0
    """Total number of steps (also after resuming). 0: use `epochs`."""
    epochs: NonNegative = 0
    """Total number of epochs. If this and `steps` are both 0, the method's default applies."""
    batch_size: Positive = 1
    """Images per optimiser step, over all processes and micro-batches together."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Determines the order of images, noise and timesteps. The same seed gives the same result."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the computation. auto: bf16 on devices that are fast at it, otherwise fp16
    on CUDA, otherwise fp32."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    checkpoint_every: NonNegative = 100
    """Write a checkpoint to resume from every so many steps; one is always written at the end. 0:
    only at the end."""
    keep_checkpoints: Positive = 2
    """How many checkpoints to keep."""
    save_every: NonNegative = 0
    """Save the result so far every so many steps, as `NAME-step00000500`. 0: only at the end."""
    save_every_epochs: NonNegative = 0
    """Save the result so far every so many epochs, as `NAME-000010` (both names are kohya's). 0:
    only at the end."""
    preview_every: NonNegative | Literal["auto"] = "auto"
    """Generate previews every so many steps, before the first step and after the last. auto: before
    the first, four times on the way and after the last, if together they take at most 15 % of the
    run's time or 20 seconds; otherwise only after the last; none if the environment variable
    KONOMI_PREVIEWS is off. 0: none."""
    validate_every: NonNegative = 0
    """Measure the loss on held-out images every so many steps. 0: never."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Where losses and previews are logged in addition to log.jsonl; may be empty. wandb (Weights &
    Biases) needs `pip install 'konomi[trackers]'`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """Trade speed for memory."""

    __pydantic_config__ = STRICT

    accumulation: Positive = 1
    """Gradient accumulation: split each batch into this many micro-batches. Same result, less
    memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about 40 % slower, but much less memory."""
    offload: bool = True
    """Move text encoder and VAE off the device once everything they compute is cached."""
    compile: bool = False
    """Compile the denoiser with torch.compile; pays off only in long runs on CUDA."""
    channels_last: bool = False
    """Use the channels-last memory layout, which is faster on some GPUs."""
    storage_dtype: Literal["auto", "bf16", "fp16"] = "auto"
    """Number format in which the denoiser's frozen weights are stored while `run.precision` is fp32
    (layerwise casting in diffusers): half the memory for them, at the cost of a cast at every use.
    fp16 does not change the result if the base's file is fp16. Previews use the same weights. auto:
    the number format of the computation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """How captions are encoded."""

    __pydantic_config__ = STRICT

    clip_skip: Annotated[int, Field(ge=0, le=12)] = 0
    """Which of CLIP's layers to use, counted from the end: 1 is the last, 2 the one before; 0 is
    the base's own."""
    max_tokens: Annotated[int, Field(ge=75, le=750, multiple_of=75)] = 75
    """Maximum caption length in tokens, in chunks of 75."""
    emphasis: bool = False
    """Interpret `(word:1.2)` and `BREAK` in captions. In prompts of previews they always are."""
    chunking: Literal["novelai", "sd_scripts"] = "novelai"
    """How chunks are joined: `novelai` keeps each chunk's start and end tokens (77, 154, 231
    positions), `sd_scripts` strips the inner ones (227)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewConfig(GenerationConfig):
    """The pictures generated during training."""

    __pydantic_config__ = STRICT

    prompts: tuple[str, ...] = ()
    """Prompts; by default the trigger, the trigger in another setting, the class alone and
    something unrelated."""
    size: Size | None = None
    """Picture size; by default the training resolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """The loss on images that are not trained on."""

    __pydantic_config__ = STRICT

    path: str = ""
    """Images for validation; if empty, `fraction` of the training images is held out."""
    fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Fraction of the images held out, if `path` is empty and `run.validate_every` is set. At least
    one image."""
    timesteps: Positive = 8
    """Number of evenly spaced noise levels at which each image is measured, always with the same
    noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveConfig:
    """The result file."""

    __pydantic_config__ = STRICT

    format: Literal["auto", "kohya", "webui", "diffusers", "peft", "custom", "checkpoint"] = "auto"
    """Adapters: `webui` (A1111, ComfyUI; for a LoRA the same as `kohya`, sd-scripts), `diffusers`,
    `peft`, `custom` (Custom Diffusion's delta.bin). Whole models: `checkpoint` (a single file) or
    `diffusers` (a folder). auto: the format that most programs read for this kind of result."""
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Number format of the saved weights."""
    comment: str = ""
    """A comment of your own, stored in the file's metadata."""
