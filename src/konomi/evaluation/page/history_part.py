"""What a run's history adds to its page: images whose loss stands out, and the tree of runs."""

from pathlib import Path

from konomi.config.changed_settings import written
from konomi.errors import KonomiError
from konomi.evaluation.images_that_hurt import outliers
from konomi.evaluation.page.content import Example, TreeRow
from konomi.evaluation.page.pictures import embedded
from konomi.evaluation.page.texts import Words
from konomi.evaluation.run_tree import RunNode, tree

BUDGET = 2**20
MOST_SHOWN = 12


def hurting_images(run: Path, words: Words) -> tuple[Example, ...]:
    """The worst first; none where the run has noted no losses."""
    try:
        found = outliers(run)[:MOST_SHOWN]
    except KonomiError:
        return ()
    shown = embedded([image.path for image in found], beside=run, budget=BUDGET, largest=256)
    return tuple(
        Example(
            picture=shown.get(image.path),
            name=image.name,
            text=words(
                "hurting_text",
                share=round(100 * image.excess),
                count=image.sightings,
                caption=image.caption,
            ),
        )
        for image in found
    )


def tree_rows(run: Path, words: Words) -> tuple[TreeRow, ...]:
    """Parents above their branches; none for a run without either."""
    found = tree(run)
    if not found.branches:
        return ()
    depths: list[int] = []
    for node in found.nodes:
        depths.append(0 if node.parent is None else depths[node.parent] + 1)
    return tuple(
        TreeRow(depth, node.name, _about(node, words), node.here)
        for node, depth in zip(found.nodes, depths, strict=True)
    )


def _about(node: RunNode, words: Words) -> str:
    parts = []
    if node.parent is not None:
        parts.append(words("tree_from", step=node.at))
        parts += [f"{change.path} = {written(change.after)}" for change in node.changed]
    if node.last_step:
        parts.append(words("tree_reached", step=node.last_step))
    if not node.there:
        parts.append(words("tree_gone"))
    return ", ".join(parts)
