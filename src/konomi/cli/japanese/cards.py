"""Recipe cards, and what is written into pictures."""

PAIRS = {
    "Recipe card to share (no paths but their last names in it): {path}": "共有できるレシピカード(パスは末尾の名前だけ入っています): {path}",
    "the recipe card could not be written: {reason}": "レシピカードを書けませんでした: {reason}",
    "{flag} has no effect with --from. Change it in the recipe that is written.": "{flag} は --from と一緒には効きません。書き出されたレシピで変えてください。",
    "{path}: is a picture without a recipe. Runs of konomi end with one that has it, NAME.card.png; some sites remove what pictures carry.": "{path}: レシピの入っていない画像です。konomi の学習は最後に、レシピ入りの NAME.card.png を作ります。サイトによっては画像の中の情報が削除されます。",
    "{path}: is a {kind} picture, and recipe cards are PNG files. Where it was converted, the recipe is gone; ask for the original.": "{path}: {kind} の画像です。レシピカードは PNG ファイルです。変換されたものにはレシピが残っていないので、元のファイルをもらってください。",
    "it is not UTF-8 text": "UTF-8 のテキストではありません",
    "{path}: the recipe in this picture is damaged ({reason}).": "{path}: この画像の中のレシピは壊れています({reason})。",
    "{path}: the recipe in this picture is damaged (its checksum does not fit).": "{path}: この画像の中のレシピは壊れています(チェックサムが合いません)。",
    "{path}: the recipe in this picture is {count} bytes long, far too much for a recipe. It is not read.": "{path}: この画像の中のレシピは {count} バイトもあり、レシピにしては大きすぎるため読み込みません。",
    "{card}: was trained on the base {base}, which is not here. Name yours with --base.": "{card}: ベースモデル {base} で学習したものですが、ここにはありません。--base で指定してください。",
    "{card}: names images in {folder}, which are not here. Name yours with --images DIR.": "{card}: 画像は {folder} にあることになっていますが、ここにはありません。--images DIR で指定してください。",
    "{card}: names class images in {folder}, which are not here. Name yours with --prior DIR.": "{card}: クラス画像は {folder} にあることになっていますが、ここにはありません。--prior DIR で指定してください。",
    "no font on this machine has {letters}: {picture} shows {mark} in their place. Install a font for that script, such as Noto Sans CJK.": "{letters} のあるフォントがこのマシンにないため、{picture} では {mark} になります。Noto Sans CJK など、その文字のフォントを入れてください。",
    "the recipe card": "レシピカード",
    "the sheet of all pictures": "一覧の画像",
}  # fmt: skip
