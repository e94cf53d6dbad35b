"""Measuring and comparing."""

PAIRS = {
    '{count} of {total} different images are not trained on, so that results can be compared with them ({names}). evaluation.hold_out = "off" trains on all.': '異なる画像 {total} 枚のうち {count} 枚は学習に使わず、結果の比較用に取り分けます({names})。evaluation.hold_out = "off" ですべて学習します。',
    "the images that run.validate_every measures are compared with, and no others.": "比較には run.validate_every で検証する画像だけが使われます。",
    "{path}: the picture is gone. Run the command again.": "{path}: 絵がなくなっています。もう一度実行してください。",
    "{folder}: holds no summary.json. Name a folder that `konomi evaluate` or `konomi compare` wrote.": "{folder}: summary.json がありません。`konomi evaluate` か `konomi compare` が書いたフォルダを指定してください。",
    "{path}: is damaged ({why}). Remove it and run the command again.": "{path}: 壊れています({why})。削除して、もう一度実行してください。",
    "result of an evaluation": "評価結果",
}
