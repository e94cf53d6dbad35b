"""Noise processes: what belongs to one and not to the other."""

PAIRS = {
    'objective.weighting is "cosmap", which is for flow matching; {base} has another noise process. Take "min_snr", "debiased" or "none".': 'objective.weighting が "cosmap" ですが、これはフローマッチング用で、{base} のノイズ過程は異なります。"min_snr"、"debiased"、"none" のいずれかを使ってください。',
    'objective.weighting is "{weighting}", which is for a variance-preserving process; {base} is a base of flow matching. Take "cosmap" or "none".': 'objective.weighting が "{weighting}" ですが、これは分散保存型のノイズ過程用で、{base} はフローマッチングのモデルです。"cosmap" か "none" を使ってください。',
    "objective.zero_terminal_snr is on, but {base} is a base of flow matching, which ends in pure noise anyway. Switch it off.": "objective.zero_terminal_snr が有効ですが、{base} はフローマッチングのモデルで、もともと最後はノイズだけになります。無効にしてください。",
    "only bases of flow matching read it.": "フローマッチングのベースモデルだけが読みます。",
    'only objective.timesteps.distribution = "logit_normal" reads it.': 'objective.timesteps.distribution = "logit_normal" のときだけ読まれます。',
    "sampler {sampler} does not know flow matching, and this base is of that kind. Take one of {known}.": "サンプラー {sampler} はフローマッチングに対応していませんが、このベースモデルはフローマッチングです。次から選んでください: {known}。",
    "{base} is a base of flow matching, which ends in pure noise anyway.": "{base} はフローマッチングのモデルで、もともと最後はノイズだけになります。",
    "the scheduler's config has {name}, which konomi does not know.": "スケジューラーの設定に、konomi が対応していない {name} があります。",
    "the scheduler's config has shift = {value}, which no model of this kind has.": "スケジューラーの設定 shift = {value} は、この種類のモデルではありえない値です。",
}
