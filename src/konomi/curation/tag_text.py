"""Tags of a site as a caption."""

from konomi.curation.sites.site import GROUPS, Post

_KAOMOJI = frozenset((
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o",
    "@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||",
))  # fmt: skip
"""Faces, whose underscores are no spaces."""


def tag_text(tag: str) -> str:
    """A tag in words: underscores become spaces, but for faces."""
    return tag if tag in _KAOMOJI else tag.replace("_", " ")


def caption_of(post: Post, *, grouped: bool, trigger: str = "") -> str:
    """Tags with commas between, each once; the trigger in front. Tags about the file (`meta`:
    `highres`) are left out where the site says which they are.

    grouped: characters, then copyrights, artists and the rest, in place of the site's order.
    """
    if grouped:
        tags = [tag for group in GROUPS if group != "meta" for tag in post.groups.get(group, ())]
    else:
        meta = frozenset(post.groups.get("meta", ()))
        tags = [tag for tag in post.tags if tag not in meta]
    words = [trigger, *map(tag_text, tags)] if trigger else list(map(tag_text, tags))
    return ", ".join(dict.fromkeys(words))
