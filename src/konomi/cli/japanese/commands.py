# ruff: noqa: E501
"""Japanese messages. Each key is a message as it stands in the source, with a name for each value."""

PAIRS = {
    # Going on, and ending.
    "Interrupted.": "中断しました。",
    "Stopped after step {step}; saved. Go on with: {command}": "ステップ {step} で止めました。保存済みです。再開するには: {command}",
    "Pictures: {paths}": "絵: {paths}",
    "Wrote {path}. Next: konomi check {same}": "{path} を書きました。次は: konomi check {same}",
    "Wrote {path}": "{path} を書きました",
    "Look at {path}": "{path} をご覧ください",
    "note: {message}": "メモ: {message}",
    "step {step}: saved {path}": "ステップ {step}: {path} を保存しました",
    "step {step}: preview {path}": "ステップ {step}: プレビュー {path}",
    "{steps} steps, {parameters} trainable parameters, {device}, {precision}": "{steps} ステップ、学習するパラメータ {parameters}、{device}、{precision}",
    "going on after step {step} of {total}, {device}, {precision}": "ステップ {step}/{total} の続きから再開します。{device}、{precision}",
    "step {step}: validation loss {loss} (untouched base {base})": "ステップ {step}: 検証の損失 {loss}(元のベースモデルでは {base})",
    "preparing {subject}: {done}/{total}": "準備中 {subject}: {done}/{total}",
    # Names.
    "Did you mean {name}?": "{name} のことですか?",
    "{path}: no such setting.": "{path}: そのような設定はありません。",
    "konomi {name}: no such command.": "konomi {name}: そのようなコマンドはありません。",
    "{path} is {value}; it takes {allowed}.": "{path} が {value} になっています。指定できるのは: {allowed}。",
    "{path} is {value}; it takes a section.": "{path} が {value} になっています。ここには設定の表が必要です。",
    "method.kind: must be set; it takes one of {kinds}.": "method.kind: 指定が必要です。選べるのは {kinds} です。",
    "{word}: a setting is changed by name=value, for example run.steps=500.": "{word}: 設定は 名前=値 の形で変えます。例: run.steps=500",
    # Recipes and folders.
    "{recipe}: no such file. `konomi new lora -o {same}` writes a recipe to start from.": "{recipe}: ファイルがありません。`konomi new lora -o {same}` で最初のレシピを作れます。",
    "{recipe}: is not UTF-8 text (byte {at}). Save it as UTF-8.": "{recipe}: UTF-8 のテキストではありません(バイト {at})。UTF-8 で保存してください。",
    "{path}: exists already. Choose another name, or add --overwrite.": "{path}: すでにあります。別の名前にするか、--overwrite を付けてください。",
    "{path}: no such folder. Make it, or write the recipe somewhere else.": "{path}: フォルダがありません。作るか、別の場所に書いてください。",
    "--images {path}: no such file or folder.{meant}": "--images {path}: ファイルもフォルダもありません。{meant}",
    "{flag}: goes with a method, not with a recipe. Change data.sources in {recipe} instead.": "{flag}: これは手法と一緒に使うもので、レシピには使えません。{recipe} の data.sources を変えてください。",
    "data.sources: no images. Name their folder: konomi train {method} --images DIR --base BASE": "data.sources: 画像がありません。フォルダを指定してください: konomi train {method} --images DIR --base BASE",
    "data.sources: no images. Name their folder with --images DIR.": "data.sources: 画像がありません。--images DIR でフォルダを指定してください。",
    "data.sources is empty: no images to train on. Give a folder with --images DIR.": "data.sources が空です。学習する画像がありません。--images DIR でフォルダを指定してください。",
    "base: must be set. Name it with --base: tiny (built in), a folder, a .safetensors or .ckpt file, a hub id.": "base: 指定が必要です。--base に tiny(同梱)、フォルダ、.safetensors か .ckpt のファイル、ハブの ID を書いてください。",
    "{path}: neither a folder nor a file. Give a folder of images.": "{path}: フォルダでもファイルでもありません。画像のフォルダを指定してください。",
    "{path}: no images in it. Is it the right file?": "{path}: 画像がありません。正しいファイルですか?",
    "{count} images cannot be read. Replace or remove them: {names}{more}": "{count} 枚の画像が読めません。差し替えるか、取り除いてください: {names}{more}",
    # Bases.
    "{base}: there is no such file or folder. Give `tiny`, a path, or a hub id owner/name.": "{base}: ファイルもフォルダもありません。`tiny`、パス、またはハブの ID(owner/name)を指定してください。",
    "{base}: no such file or folder here, and no such model on the hub.": "{base}: ここにファイルもフォルダもなく、ハブにもそのモデルはありません。",
    "{base}: no such file or folder here, not in the hub's local cache, and the hub cannot be reached ({why}). Check the path, or connect to the network once to download it.": "{base}: ここにファイルもフォルダもなく、ハブのキャッシュにもなく、ハブにつながりません({why})。パスを確かめるか、一度ネットワークにつないでダウンロードしてください。",
    "{base}: its owner asks for consent. Give it on the hub's page and log in (hf auth login).": "{base}: 所有者が同意を求めています。ハブのページで同意し、ログインしてください(hf auth login)。",
    "{base}: holds no VAE. Give one with --vae FILE (`vae = ` in a recipe), or take a model that has it.": "{base}: VAE が入っていません。--vae FILE(レシピでは `vae = `)で指定するか、VAE 入りのモデルを使ってください。",
    # Identifier and class.
    "{method} needs an identifier, a rare word that will mean the subject. Give --trigger WORD (trigger of the source); `konomi identifiers --base {base}` lists such words.": "{method} には識別語(被写体を指す珍しい言葉)が必要です。--trigger WORD で指定してください。`konomi identifiers --base {base}` で候補が出ます。",
    "{method} needs a class noun, what the subject is in plain words.{proposed} Give --class NOUN (class_noun of the source), or prior.source=none to train without the class.": "{method} にはクラス名(被写体が何であるかを表す普通の言葉)が必要です。{proposed} --class NOUN で指定するか、prior.source=none でクラスなしに学習してください。",
    # Runs.
    "{run}: holds a run already. `konomi resume {same}` goes on with it; another --output starts a new one; --overwrite replaces it.": "{run}: すでに学習の記録があります。`konomi resume {same}` で続けるか、別の --output で新しく始めるか、--overwrite で置き換えてください。",
    "{run}: is not a run folder (no recipe.toml in it). Name the folder that `train` wrote to.": "{run}: 学習のフォルダではありません(recipe.toml がありません)。`train` が書いたフォルダを指定してください。",
    "{run}: holds no checkpoint, so there is nothing to resume. Start the run anew with train.": "{run}: チェックポイントがないので再開できません。train で最初から始めてください。",
    "{folder}: {needed} are needed and {free} are free. Free some space or choose another output folder.": "{folder}: {needed} 必要ですが、空きは {free} です。空きを作るか、別の出力先を選んでください。",
    "{path}: the checksum does not fit; the file is damaged.": "{path}: チェックサムが合いません。ファイルが壊れています。",
    "out of memory in step {step}: each batch is now computed in {passes} passes; the result stays the same.": "ステップ {step} でメモリが足りません。以後は各バッチを {passes} 回に分けて計算します。結果は変わりません。",
    "out of memory in step {step}, batch in {passes} passes. Lower data.resolution, raise memory.accumulation (up to run.batch_size), set memory.gradient_checkpointing = true, or lower the method's rank; then: konomi resume.": "ステップ {step} でメモリが足りません(バッチは {passes} 回に分割済み)。data.resolution を下げる、memory.accumulation を上げる(run.batch_size まで)、memory.gradient_checkpointing = true にする、rank を下げる、のどれかをしてから konomi resume で続けてください。",
    # Generating.
    "there is no prompt. Say what to draw: konomi generate 'a cat' --base tiny": "プロンプトがありません。何を描くか書いてください: konomi generate 'a cat' --base tiny",
    "--mask is given without --init. Give the picture that the mask belongs to.": "--mask には --init が必要です。マスクの元の絵を指定してください。",
    "{mask}: nothing in this mask is white, so nothing would be drawn. Paint white what to redraw.": "{mask}: このマスクには白い所がなく、何も描かれません。描き直す所を白く塗ってください。",
    # Doctor.
    "Update it: pip install -U '{package}>={version}'": "更新してください: pip install -U '{package}>={version}'",
    "konomi needs Python 3.11 or newer.": "konomi には Python 3.11 以上が必要です。",
    "Close other programs; loading a large base takes about 8 GiB.": "ほかのプログラムを閉じてください。大きな base の読み込みには約 8 GiB 必要です。",
    "Runs need room for checkpoints: free some space.": "チェックポイントを置く場所が必要です。空きを作ってください。",
    "Fine for the base `tiny` and for tests; full-size bases take seconds to minutes a step.": "`tiny` とテストには十分です。本物のモデルでは1ステップに数秒から数分かかります。",
    "There is an NVIDIA card, but this PyTorch is built for the CPU only. To fix that: pip install --force-reinstall torch --index-url {index}": "NVIDIA のカードがありますが、この PyTorch は CPU 専用です。直すには: pip install --force-reinstall torch --index-url {index}",
}  # fmt: skip
