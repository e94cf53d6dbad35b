"""Why this file: one sentence, in English and in Japanese.

Both are written side by side: a sentence that is put together from parts cannot be looked up in a
catalogue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from konomi.config.suggestion import SuggestionConfig
from konomi.evaluation.constraints import Breach, likeness_of
from konomi.evaluation.summary import Candidate, Estimate, Summary
from konomi.language import translated

_ONE_SIDED = 1.645 / 1.960
"""That a rise is above 0 is asked to one side: its 95 % limit lies nearer than the interval's."""
Both = tuple[str, str]
"""English, Japanese."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the rule decided."""

    summary: Summary
    limits: SuggestionConfig
    chosen: Candidate | None
    """None where nothing can be recommended."""
    broken: Mapping[str, Sequence[Breach]]
    """Candidate's id -> limits that it breaks."""
    least_bad: Candidate | None
    """Where nothing can be recommended."""


def reasons(choice: Choice) -> Both:
    """The sentence in English and in Japanese."""
    if choice.chosen is None:
        return _none_of_them(choice)
    name, name_ja = called(choice.chosen)
    found = (_alike(choice), _kept(choice), _memorised_from(choice))
    parts = [part for part in found if part is not None]
    if not parts:
        parts = [("it breaks no limit", "どの制限にも触れません")]
    english = ", and ".join(part for part, _ in parts)
    doubt, doubt_ja = _by_chance(choice)
    return (
        f"{name}: {english}.{doubt}",
        f"{name_ja}: {'。'.join(part for _, part in parts)}。{doubt_ja}",
    )


def called(candidate: Candidate) -> Both:
    """What a candidate is called."""
    weight = f"{candidate.weight:g}"
    if candidate.label == f"step {candidate.step} at weight {weight}":
        return candidate.label, f"ステップ {candidate.step}、重み {weight}"
    if candidate.label == f"step {candidate.step}":
        return candidate.label, f"ステップ {candidate.step}"
    return candidate.label, candidate.label


def _alike(choice: Choice) -> Both | None:
    """How like the subject, beside the last save of its run, else beside the base."""
    chosen = choice.chosen
    assert chosen is not None
    own = _likeness(chosen, choice.limits)
    if own is None:
        return None
    last = _last(choice)
    if last is not None and (of_last := _likeness(last, choice.limits)) is not None:
        return _beside_last(own, of_last, choice.broken.get(last.id, ()))
    if own.base is None:
        return f"likeness {own.mean:.2f}", f"近さは {own.mean:.2f} です"
    return (
        f"likeness {own.mean:.2f} against the base's {own.base:.2f}",
        f"近さは {own.mean:.2f}(ベースモデルは {own.base:.2f})です",
    )


def _beside_last(own: Estimate, last: Estimate, broken: Sequence[Breach]) -> Both:
    figures, figures_ja = (
        f"({own.mean:.2f} against {last.mean:.2f})",
        f"({own.mean:.2f}、最後は {last.mean:.2f})",
    )
    if broken:
        fault = broken[0].text
        return (
            f"likeness {own.mean:.2f}; the last ({last.mean:.2f}) {fault}",
            f"近さは {own.mean:.2f} です。最後の保存({last.mean:.2f})は推薦できません"
            f"({translated(fault, 'ja')})",
        )
    if own.mean > last.mean + 0.02:
        return (
            f"closer to the subject than the last save {figures}",
            f"最後の保存より似ています{figures_ja}",
        )
    if own.mean < last.mean - 0.02:
        return (
            f"almost as close to the subject as the last save {figures} and at least as good "
            "overall",
            f"近さは最後の保存に少し劣りますが{figures_ja}、総合では同等以上です",
        )
    return (
        f"as close to the subject as the last save {figures}",
        f"最後の保存と同じくらい似ています{figures_ja}",
    )


def _by_chance(choice: Choice) -> Both:
    """A warning where what was learned is no more than these few pictures differ by chance."""
    chosen = choice.chosen
    assert chosen is not None
    own = _likeness(chosen, choice.limits)
    if own is None or own.difference is None:
        return "", ""
    rise, low, _ = own.difference
    if rise > _ONE_SIDED * (rise - low):
        return "", ""
    return (
        " But the rise over the base may be chance: more steps, or --seeds with more pictures, "
        "will tell.",
        "ただし、ベースモデルからの上昇は偶然の範囲です。"
        "ステップを増やすか、--seeds で画像を増やすと確かめられます。",
    )


def _kept(choice: Choice) -> Both | None:
    """That the class is still what it was, where it was measured."""
    chosen = choice.chosen
    assert chosen is not None
    if not {"leak", "preservation"} & set(chosen.scores):
        return None
    prompt = next((p for p in choice.summary.prompts if p.kind == "class"), None)
    noun = _noun(prompt.plain) if prompt is not None else ""
    if not noun:
        return "its class is still what it was", "クラスは元のままです"
    article = "an" if noun[0].lower() in "aeiou" else "a"
    return f"{article} {noun} is still any {noun}", f"「{noun}」は普通の{noun}のままです"


def _memorised_from(choice: Choice) -> Both | None:
    """The first later save of the same run that copies its training pictures, or knows them by
    their loss; nothing where the last one is meant, of which all is said already.
    """
    chosen, last = choice.chosen, _last(choice)
    assert chosen is not None
    later = [
        (one, breach)
        for one in choice.summary.candidates
        if one.run and one.run == chosen.run and one.step > chosen.step
        if one.weight == chosen.weight and one is not last
        for breach in choice.broken.get(one.id, ())
        if breach.kind in ("copies", "memorisation")
    ]
    if not later:
        return None
    first, breach = min(later, key=lambda pair: pair[0].step)
    return (
        f"from step {first.step} on the run {breach.text}",
        f"ステップ {first.step} からは推薦できません({translated(breach.text, 'ja')})",
    )


def _noun(plain: str) -> str:
    """`dog` of `a dog` or `a photo of a dog`; nothing where the prompt says more."""
    words = plain.rsplit(" of ", 1)[-1].split()
    if len(words) in (2, 3) and words[0].lower() in ("a", "an"):
        return " ".join(words[1:])
    return ""


def _last(choice: Choice) -> Candidate | None:
    """The latest save of the chosen one's run, if that is another."""
    chosen = choice.chosen
    assert chosen is not None
    same = [
        one
        for one in choice.summary.candidates
        if one.run == chosen.run and one.run and one.step > chosen.step and not one.failure
    ]
    if not same:
        return None
    return max(same, key=lambda one: (one.step, -abs(one.weight - chosen.weight)))


def _likeness(candidate: Candidate, limits: SuggestionConfig) -> Estimate | None:
    name = likeness_of(candidate, limits)
    return None if name is None else candidate.scores[name]


def _none_of_them(choice: Choice) -> Both:
    least = choice.least_bad
    if least is None:
        return (
            "None can be recommended: no file could be measured.",
            "推薦できるものがありません。どのファイルも測定できませんでした。",
        )
    kinds = {breach.kind for faults in choice.broken.values() for breach in faults}
    if kinds == {"not_learned"}:
        what, what_ja = (
            ("subject", "被写体") if choice.limits.goal == "subject" else ("style", "画風")
        )
        return (
            f"None can be recommended: no file is nearer to the {what} than the base. Train for "
            "more steps, or at a higher learning rate.",
            f"推薦できるものがありません。{what_ja}への近さがベースモデルを上回るファイルはありません。"
            "ステップ数を増やすか、学習率を上げてください。",
        )
    faults = choice.broken[least.id]
    name, name_ja = called(least)
    english = " and ".join(breach.text for breach in faults)
    japanese = "、".join(translated(breach.text, "ja") for breach in faults)
    return (
        f"None can be recommended: every file breaks a limit. The least bad, {name}, {english}.",
        "推薦できるものがありません。どのファイルも制限のいずれかに触れます。"
        f"最もましなのは{name_ja}です({japanese})。",
    )
