"""The page's own words, English and Japanese side by side. `{name}` is filled in."""

from konomi.language import translated

TEXTS: dict[str, tuple[str, str]] = {
    # Headings.
    "before_after": ("Before and after", "学習の前と後"),
    "before_after_note": (
        "Same words, same noise: left the base, right what was trained. Click a picture to enlarge it and to slide between both.",
        "同じプロンプト、同じノイズで描いた絵です。左が元のモデル、右が学習後。クリックすると拡大し、スライダーで見比べられます。",
    ),
    "learned_from": ("What it learned from", "学習に使った画像"),
    "grids": ("All pictures", "すべての絵"),
    "grids_note": (
        "A row is one seed, so all of its pictures start from the same noise.",
        "1 行が 1 つのシードです。同じ行の絵はすべて同じノイズから描いています。",
    ),
    "grids_run": ("Picture by picture, as it learned", "学習の進み方"),
    "grids_run_note": (
        "Each row is one prompt from the same noise, each column the state after so many steps.",
        "1 行が 1 つのプロンプト(同じノイズ)、列は左から学習の進んだ順です。",
    ),
    "more_grids": ("Pictures of the other candidates", "ほかの候補の絵"),
    "scores": ("Scores", "スコア"),
    "scores_note": (
        "Mean over all pictures, and below it the range in which it lies with 95 % certainty. Bold is best; the base's own figures stand on top.",
        "全画像の平均値です。下の小さい数字は 95 % 信頼区間。太字が最良、一番上が元のモデル自身の値です。",
    ),
    "scores_explained": ("What the scores mean", "スコアの意味"),
    "trade_off": ("Likeness against prompt following", "似ているか、プロンプトに従うか"),
    "curves": ("Training", "学習の経過"),
    "hurting": ("Pictures that may hurt", "学習の妨げになりそうな画像"),
    "hurting_note": (
        "Their loss is unlike that of the others. Often the caption is wrong, or something else is in the picture.",
        "損失がほかの画像と大きく違います。キャプションの誤りや、別のものが写っている場合がよくあります。",
    ),
    "hurting_text": (
        "loss {share} % above what is to be expected ({count} sightings): {caption}",
        "損失が見込みより {share} % 高い({count} 回分): {caption}",
    ),
    "copies": ("Copies", "学習画像の複製"),
    "copies_note": (
        "Left what was drawn, right the training picture that it nearly repeats.",
        "左が描かれた絵、右がそれとほぼ同じ学習画像です。",
    ),
    "settings": ("Settings", "設定"),
    "settings_changed": ("Changed from the defaults", "既定から変えたもの"),
    "settings_none": ("Everything is at its default.", "すべて既定のままです。"),
    "settings_all": ("All settings", "すべての設定"),
    "facts": ("The run", "この学習について"),
    "tree": ("Where this run comes from", "学習の系統"),
    "tree_here": ("this run", "この学習"),
    "tree_from": ("from step {step} on", "ステップ {step} から"),
    "tree_reached": ("step {step} reached", "ステップ {step} まで"),
    "tree_gone": ("no longer there", "もうありません"),
    "notes": ("Notes", "注意"),
    "commands": ("What next", "次にすること"),
    # The lead.
    "lead_run": (
        "{method} on {pictures}, {steps} steps in {time}, from the base {base}.",
        "{base} をもとに、{method} で {pictures}を {steps} ステップ学習しました({time})。",
    ),
    "lead_unknown": (
        "{steps} steps in {time}.",
        "{steps} ステップ学習しました({time})。",
    ),
    "lead_comparison": (
        "{candidates} and the base {base}, each drawn with the same {prompts} and {seeds}.",
        "{candidates}と元のモデル {base} を、同じ {prompts}、{seeds}で描き比べました。",
    ),
    "title_grid": ("One setting against another", "設定の見比べ"),
    "grids_sheet": ("Pictures", "絵"),
    "grids_sheet_note": (
        "Everything else is the same in all pictures. Click one to enlarge it.",
        "ほかの設定はすべて同じです。クリックすると拡大します。",
    ),
    "title_comparison": ("Which one to keep", "どれを残すか"),
    "pictures": ("{count} pictures", "{count} 枚の画像"),
    "pictures_one": ("1 picture", "1 枚の画像"),
    "candidates": ("{count} candidates", "{count} 個の候補"),
    "candidates_one": ("1 candidate", "1 個の候補"),
    "prompts": ("{count} prompts", "{count} 種類のプロンプト"),
    "prompts_one": ("1 prompt", "1 種類のプロンプト"),
    "seeds": ("{count} seeds", "{count} 個のシード"),
    "seeds_one": ("1 seed", "1 個のシード"),
    "seconds": ("{count} s", "{count} 秒"),
    "minutes": ("{count} min", "{count} 分"),
    "hours": ("{hours} h {minutes} min", "{hours} 時間 {minutes} 分"),
    # The suggestion.
    "suggestion": ("Keep {label}", "おすすめ: {label}"),
    "no_suggestion": ("None of them can be recommended", "おすすめできるものはありません"),
    "refused": ("Left out of the choice", "選ばなかった候補"),
    "draw": ("Draw with it:", "これで描く:"),
    "go_on": ("Train on:", "さらに学習する:"),
    "which_save": (
        "{count} files were saved on the way. Which one is best? Measure them:",
        "途中で {count} 個のファイルを保存しました。どれが良いかを測るには:",
    ),
    "copy": ("Copy", "コピー"),
    "copied": ("Copied", "コピーしました"),
    # Columns and rows.
    "base": ("base", "元のモデル"),
    "trained": ("trained", "学習後"),
    "step": ("step {step}", "ステップ {step}"),
    "seed": ("seed {seed}", "シード {seed}"),
    "weight": ("weight {weight}", "強さ {weight}"),
    "candidate": ("candidate", "候補"),
    "kept": ("suggested", "おすすめ"),
    "kind_subject": ("the subject", "学習した対象"),
    "kind_context": ("the subject elsewhere", "別の場所の対象"),
    "kind_class": ("only its class: should change little", "クラスだけ: あまり変わらないのが良い"),
    "kind_unrelated": ("unrelated: should not change", "無関係: 変わらないのが良い"),
    # Charts.
    "loss": ("Loss", "損失"),
    "loss_note": (
        "Pale: each step. Line: its running mean. It says little about the pictures; a steady fall is healthy.",
        "薄い線が各ステップ、太い線がその移動平均です。絵の良し悪しはこれだけでは分かりませんが、ゆるやかに下がれば順調です。",
    ),
    "validation": ("Loss on pictures that were held out", "検証画像での損失"),
    "validation_note": (
        "Dashed: the untouched base. Lowest after step {step}; where it rises again, the run begins to learn by heart.",
        "破線は元のモデルの値です。最も低いのはステップ {step} の後。そこから上がるときは丸暗記が始まっています。",
    ),
    "rate": ("Learning rate", "学習率"),
    "runs": ("Loss of the candidates", "候補ごとの損失"),
    "runs_note": ("The running mean of each run.", "各学習の移動平均です。"),
    "axis_step": ("step", "ステップ"),
    "trade_off_note": (
        "Each number is a candidate of the table below; bars are 95 % intervals. Up and to the right is better. Colour is drift, how far pictures moved that should have stayed.",
        "番号は下の表の候補、線は 95 % 信頼区間です。右上ほど良く、色は変わってはいけない絵がどれだけ変わったか(ドリフト)を表します。",
    ),
    "drift_from": ("drift {low} to {high}", "ドリフト {low}~{high}"),
    "no_drift": ("drift not measured", "ドリフトは未測定"),
    "interval": ("{low} to {high}", "{low}~{high}"),
    "higher": ("higher is better", "高いほど良い"),
    "lower": ("lower is better", "低いほど良い"),
    "against_base": ("{sign}{mean} ({low} to {high}) against the base", "元のモデルとの差 {sign}{mean}({low}~{high})"),
    "copy_text": (
        "similarity {similarity}; usual is at most {usual}",
        "類似度 {similarity}(通常は {usual} まで)",
    ),
    "references": (
        "Likeness is measured against {pictures} that were not trained on.",
        "似ている度合いは、学習に使っていない{pictures}と比べています。",
    ),
    "references_trained": (
        "Likeness is measured against {pictures} that were trained on, so it flatters what was learned by heart.",
        "似ている度合いは、学習に使った{pictures}と比べています。そのため丸暗記したものほど高めに出ます。",
    ),
    # Facts.
    "fact_base": ("base", "元のモデル"),
    "fact_method": ("method", "手法"),
    "fact_trigger": ("trigger", "トリガー"),
    "fact_result": ("file", "ファイル"),
    "fact_steps": ("steps", "ステップ数"),
    "fact_time": ("time", "時間"),
    "fact_speed": ("speed", "速さ"),
    "fact_memory": ("memory", "メモリ"),
    "fact_encoder": ("measured with", "測定に使ったモデル"),
    "per_step": ("{seconds} s a step", "1 ステップ {seconds} 秒"),
    # Scores by name; others are shown as they call themselves.
    "score_likeness": ("likeness", "似ている度合い"),
    "score_prompt_following": ("prompt following", "プロンプトへの忠実さ"),
    "score_style_likeness": ("style likeness", "画風の近さ"),
    "score_drift": ("drift", "ドリフト"),
    "score_preservation": ("likeness of the class", "クラスの似ている度合い"),
    "score_lpips_diversity": ("diversity (LPIPS)", "多様さ(LPIPS)"),
    "score_leak": ("leak", "クラスへの漏れ"),
    "score_diversity": ("diversity", "多様さ"),
    "score_copies": ("copies", "学習画像の複製"),
    "score_memorisation": ("memorisation", "学習画像の暗記"),
    "score_held_out_loss": ("loss on other pictures", "ほかの画像での損失"),
    "score_class_loss": ("loss on the class", "クラスの画像での損失"),
    # Small things of the page itself.
    "close": ("Close", "閉じる"),
    "previous": ("Previous", "前へ"),
    "next": ("Next", "次へ"),
    "slide": ("Slide between base and trained", "元のモデルと学習後を見比べる"),
    "not_there": ("not drawn", "なし"),
    "made_by": ("Written by konomi {version}.", "konomi {version} が作成しました。"),
}  # fmt: skip
"""Key -> (English, Japanese)."""

_COLUMNS = {"en": 0, "ja": 1}


def words_of(language: str) -> dict[str, str]:
    """All of them in one language."""
    column = _COLUMNS.get(language, 0)
    return {key: pair[column] for key, pair in TEXTS.items()}


class Words:
    """Fills them in."""

    def __init__(self, language: str) -> None:
        self.language = language if language in _COLUMNS else "en"
        self.table = words_of(self.language)

    def __call__(self, key: str, **values: object) -> str:
        """A sentence with its values. Not twice: values are texts of strangers."""
        return self.table[key].format(**values) if values else self.table[key]

    def counted(self, key: str, count: int) -> str:
        """`5 pictures`, `1 picture`."""
        return self(f"{key}_one") if count == 1 else self(key, count=count)

    def score(self, name: str, title: str) -> str:
        """The title of a score; its own where this page has none for it."""
        return self.table.get(f"score_{name}") or translated(title or name, self.language)

    def time(self, seconds: float) -> str:
        """`40 s`, `12 min`, `3 h 05 min`."""
        if seconds < 90:
            return self("seconds", count=f"{seconds:.0f}")
        minutes = round(seconds / 60)
        if minutes < 90:
            return self("minutes", count=minutes)
        return self("hours", hours=minutes // 60, minutes=f"{minutes % 60:02d}")
