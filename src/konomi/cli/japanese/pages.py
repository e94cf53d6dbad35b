"""What the page of a run or a comparison needs; its own words are in evaluation/page/texts.py."""

PAIRS = {
    "write the page of a run or a comparison again": "学習や比較のページ(report.html)を作り直す",
    "Write report.html, a page to look at, from what lies in a run folder or in that of a comparison.": "学習や比較のフォルダにあるものから、結果のページ report.html を作ります。",
    "what train, evaluate or compare wrote to": "train、evaluate、compare の出力フォルダ",
    "of the page (default: the environment's)": "ページの言語(既定: 環境の設定)",
    "show it in a browser": "ブラウザで開く",
    "There is no browser here to show it in.": "ページを開けるブラウザがありません。",
    "report.html could not be written: {reason}": "report.html を書けませんでした: {reason}",
    "{path}: neither a run folder nor that of a comparison (no recipe.toml, log.jsonl or summary.json in it). Name the folder that `train`, `evaluate` or `compare` wrote to.": "{path}: 学習のフォルダでも比較のフォルダでもありません(recipe.toml、log.jsonl、summary.json のどれもありません)。`train`、`evaluate`、`compare` の出力フォルダを指定してください。",
    # The demonstration.
    "Train three methods on the built-in base and sample images, measure them, and say which to keep; a CPU is enough. Ends with a page to look at.": "同梱のベースモデルと画像で 3 つの手法を学習し、測って、残すべきものを示します(CPU で動きます)。最後に結果のページを作ります。",
    "train three methods on the built-in base and images, and say which to keep": "同梱のモデルと画像で 3 つの手法を学習し、残すべきものを示す",
    "1 of 3: {reason}": "1/3: {reason}",
    "2 of 3: {reason}": "2/3: {reason}",
    "3 of 3: {reason}": "3/3: {reason}",
    "textual inversion": "Textual Inversion",
    "pivotal tuning": "Pivotal Tuning",
}  # fmt: skip
