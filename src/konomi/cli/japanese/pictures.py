# ruff: noqa: E501
"""Drawing pictures."""

PAIRS = {
    "The negative prompt has no effect with guidance 1, which switches guidance off.": "ガイダンスが 1(無効)なので、ネガティブプロンプトは効きません。",
    "Guidance rescale has no effect with guidance 1, which switches guidance off.": "ガイダンスが 1(無効)なので、guidance rescale は効きません。",
    "Tags in the negative prompt add no adapter; write them into the prompt.": "ネガティブプロンプトのタグではアダプタは追加されません。プロンプトに書いてください。",
    "Strength has no effect without a picture to start from (--init).": "元の絵(--init)がないので、strength は効きません。",
    "--strength has no effect without --init.": "--strength は --init がないと効きません。",
    "The picture to start from is {width}x{height} and is stretched to {drawn}, a size of another shape.": "元の絵は {width}x{height} で、縦横比の異なる {drawn} に引き伸ばされます。",
    "The picture to start from is {width}x{height}; it is drawn at {drawn}. --size decides otherwise.": "元の絵は {width}x{height} ですが、{drawn} で描きます。--size で変更できます。",
    "{piece} in {where} is drawn as text: the tags that konomi knows are {tags}.": "{where} の {piece} はただの文字として扱われます。使えるタグは {tags} です。",
    "{piece} in {where} is drawn as text: konomi fills in no wildcards.": "{where} の {piece} はただの文字として扱われます。ワイルドカードには対応していません。",
    "{piece} in {where} is drawn as text: konomi picks none of several. [a|b] takes turns.": "{where} の {piece} はただの文字として扱われます。候補からの選択には対応していません。[a|b] は交互に切り替えます。",
    "{piece} in {where}: a word is called by its name alone. Write {name}.": "{where} の {piece}: 学習した言葉は名前だけで呼び出します。{name} と書いてください。",
    "AND in {where} is drawn as a word: konomi composes no prompts with it. a:0.7 | b:0.3 blends two.": "{where} の AND はただの単語として扱われます。プロンプトを混ぜるには a:0.7 | b:0.3 と書いてください。",
    "{name} is at strength 0: it has no effect.": "{name} は強さ 0 なので、効果がありません。",
    "{name} holds nothing for the {part}: its weight {weight} has no effect.": "{name} には {part} の重みがないため、強さ {weight} は効きません。",
    "{name} brings {words}, which no prompt says: it has no effect.": "{name} の言葉 {words} がどのプロンプトにもないため、効果がありません。",
    "{name} was trained with the trigger {trigger}, which no prompt says.": "{name} のトリガー {trigger} がどのプロンプトにもありません。",
    "{name}: lbw says nothing about {count} layers, which keep the whole strength.": "{name}: lbw に指定のない {count} 層は、元の強さのままです。",
    # Requests.
    "--add {argument}: there is no file {path}. Write FILE, FILE:0.8 or FILE:unet=0.8:text=0.5.": "--add {argument}: ファイル {path} がありません。FILE、FILE:0.8、FILE:unet=0.8:text=0.5 のように書いてください。",
    "<{kind}:{name}>: no such adapter in {where}; {there}": "<{kind}:{name}>: {where} にそのアダプタはありません。{there}",
    "{name} is {side}; it must be a multiple of {factor}. The nearest is {nearest}.": "{name} が {side} です。{factor} の倍数でなければなりません。最も近いのは {nearest} です。",
    "sampler is {sampler}; choose one of {known}.": "sampler が {sampler} です。次から選んでください: {known}。",
    "strength is {strength}; it must lie above 0 and not above 1.": "strength が {strength} です。0 より大きく 1 以下でなければなりません。",
    "size is {width}x{height}; at most {most} pixels a side can be drawn.": "サイズが {width}x{height} です。1 辺は最大 {most} ピクセルです。",
    "{path} cannot be read as a picture: {why}": "{path} を画像として読めません: {why}。",
    "{path} holds no prompt. Write one prompt a line.": "{path} にプロンプトがありません。1 行に 1 つ書いてください。",
    "The picture of seed {seed} is not a number: the {part} overflowed in {dtype}. {advice}": "シード {seed} の絵が NaN になりました({part} が {dtype} でオーバーフロー)。{advice}",
}  # fmt: skip
