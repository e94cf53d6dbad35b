"""The best file of each method of a comparison."""

from dataclasses import replace

from konomi.config.suggestion import SuggestionConfig
from konomi.evaluation.suggestion import suggest
from konomi.evaluation.summary import Summary


def best_of_methods(summary: Summary, limits: SuggestionConfig | None = None) -> dict[str, str]:
    """Method -> the label of its best file, by the rule of the suggestion among the method's own.
    Methods none of whose files keeps the limits are left out.

    limits: the constants of the rule; by default its defaults.
    """
    files = [one for one in summary.candidates if one.method not in ("", "base")]
    best: dict[str, str] = {}
    for method in dict.fromkeys(one.method for one in files):
        own = [one for one in summary.candidates if one.method in (method, "base")]
        chosen = suggest(replace(summary, candidates=tuple(own)), limits or SuggestionConfig())
        labels = {one.id: one.label for one in own}
        if chosen.id:
            best[method] = labels[chosen.id]
    return best
