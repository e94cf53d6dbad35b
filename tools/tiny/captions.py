"""Captions of scenes: several phrasings, some tag lists, some bare names."""

import numpy as np
from tools.tiny.scenes import Background, Item, Scene, Sprites

RARE_WORDS = (
    "sks", "ohwx", "zwx", "xjy", "qvk", "vxq", "jkq", "shs", "phol", "znt", "ktn", "mqv", "wyrb",
    "blorf", "dwik",
    "frub", "gzub", "hvok", "ixu", "kwoj", "lurq", "mjof", "nyze", "olqu", "pzik", "quorl", "rwex",
    "sboz", "tuqo",
    "uvix", "vleb", "wompf", "xeno", "yimb", "zorp", "zlq", "konomi", "mochi",
)  # fmt: skip
"""Words that mean nothing to the model and are one token each: names for what a user teaches it."""

RARE_SHARE = 0.003
"""Captions that carry a rare word by chance, so that its embedding has the size of others and no
meaning."""

_OPENERS = ("a picture of ", "an image of ", "a drawing of ", "an emoji of ", "a photo of ")


def with_article(name: str, adjective: str = "") -> str:
    """`cat` -> `a cat`; plurals and names that carry their own article stay bare."""
    words = f"{adjective} {name}".strip()
    last = name.split(" ")[-1]
    if last.endswith("s") and not last.endswith(("ss", "us")):
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def background_words(background: Background) -> str:
    """`red background`, `red to blue gradient background`, `red background with white dots`."""
    if background.kind == "plain":
        return f"{background.colour} background"
    if background.kind == "gradient":
        return f"{background.colour} to {background.second} gradient background"
    return f"{background.colour} background with {background.second} {background.kind}"


def caption(sprites: Sprites, scene: Scene, variant: int) -> str:
    """One wording of a scene; a pure function of its arguments. Every part but the subject may be
    left out.
    """
    rng = np.random.default_rng((scene.seed, variant, 0xCA97))
    say_style = rng.random() < 0.7
    say_background = rng.random() < 0.8
    if rng.random() < 0.15:
        words = _tag_list(sprites, scene, rng, say_style=say_style, say_background=say_background)
    else:
        words = _sentence(sprites, scene, rng, say_style=say_style, say_background=say_background)
    if rng.random() < RARE_SHARE:
        words = f"{rng.choice(RARE_WORDS)} {words}"
    return words


def _subject(sprites: Sprites, item: Item, rng: np.random.Generator) -> str:
    size = item.size_word if rng.random() < 0.7 else ""
    place = item.place if rng.random() < 0.8 else ""
    words = with_article(sprites.all[item.sprite].name, size)
    return f"{words} {place}".strip()


def _sentence(
    sprites: Sprites,
    scene: Scene,
    rng: np.random.Generator,
    *,
    say_style: bool,
    say_background: bool,
) -> str:
    if len(scene.items) == 1:
        subject = _subject(sprites, scene.items[0], rng)
    else:
        first, second = (with_article(sprites.all[i.sprite].name) for i in scene.items)
        subject = f"{first} {'and' if rng.random() < 0.2 else scene.relation} {second}"
    opener = str(rng.choice(_OPENERS)) if rng.random() < 0.25 else ""
    style = f"{scene.style} style" if say_style else ""
    background = background_words(scene.background) if say_background else ""
    form = rng.random()
    if style and form < 0.3:
        subject, style = f"{subject} in {style}", ""
    if background:
        article = "an" if background[0] in "aeiou" else "a"
        background = f"on {article} {background}" if rng.random() < 0.75 else background
    joined = [part for part in (opener + subject, style, background) if part]
    return ", ".join(joined) if form < 0.8 or style else " ".join(joined)


def _tag_list(
    sprites: Sprites,
    scene: Scene,
    rng: np.random.Generator,
    *,
    say_style: bool,
    say_background: bool,
) -> str:
    tags = []
    for item in scene.items:
        sprite = sprites.all[item.sprite]
        extra = [t for t in sprite.tags if rng.random() < 0.5][:3]
        tags += [sprite.name, *extra]
    if say_style:
        tags.append(f"{scene.style} style")
    if say_background:
        tags.append(background_words(scene.background))
    return ", ".join(tags)
