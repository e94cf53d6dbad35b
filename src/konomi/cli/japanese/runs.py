# ruff: noqa: E501
"""Training and going on with it."""

PAIRS = {
    "the loss of step {step} is {value} (images: {names}). No weight was changed by it; the last checkpoint is good. Lower optimizer.learning_rate (now {rate}), or set run.precision to bf16 or fp32; then: konomi resume.": "ステップ {step} の損失が {value} になりました(画像: {names})。重みは変更されておらず、最後のチェックポイントは正常です。optimizer.learning_rate(現在 {rate})を下げるか、run.precision を bf16 か fp32 にしてから、konomi resume で続けてください。",
    "{damage} Going back to the one before.": "{damage} 1つ前のチェックポイントに戻ります。",
    "{folder}: all {count} checkpoints are damaged, so the run cannot be resumed. Start it anew with another output folder; a saved result file can be gone on from (method.start).": "{folder}: {count} 個のチェックポイントがすべて壊れているため、再開できません。別の出力先で最初から始めてください。保存済みの結果ファイルからは続けられます(method.start)。",
    "{path}: was written by a newer konomi. Update konomi to resume it.": "{path}: 新しい版の konomi で書かれています。再開するには konomi を更新してください。",
    "{path}: is damaged (not readable as JSON).": "{path}: 壊れています(JSON として読めません)。",
    "{path}: cannot be read ({why}).": "{path}: 読めません({why})。",
    "this is no longer the run that was stopped: {changes}. Undo the change, or resume with --allow-changes if you mean it.": "中断したときの学習と内容が異なります: {changes}。変更を元に戻すか、意図した変更であれば --allow-changes を付けて再開してください。",
    "with {now} steps in place of {then} the {what} moves: the learning rate of step {step} is {is_now} % of its height, and was to be {was} %{times}. --keep-schedule keeps that of {same} steps, and its last rate beyond them.": "ステップ数を {then} から {now} に変えたため、{what} がずれます。ステップ {step} の学習率は最大値の {is_now} %(元の予定は {was} %{times})です。--keep-schedule を付けると {same} ステップの予定を保ち、その後は最後の学習率を使います。",
    "the checkpoint trains other {what} than this recipe ({count} differ, first: {first}). Resume with the recipe the run was started with.": "チェックポイントで学習している {what} がこのレシピと異なります({count} 件、最初は {first})。学習を始めたときのレシピで再開してください。",
    "the checkpoint's optimiser has other parameter groups than this recipe's.": "チェックポイントの最適化器のパラメータグループが、このレシピと異なります。",
    "optimizer.kind is 'adamw8bit', and bitsandbytes {version} computes on GPUs only. Update it: pip install -U 'bitsandbytes>=0.50', or use another optimizer.kind.": "optimizer.kind が 'adamw8bit' ですが、bitsandbytes {version} は GPU でしか動きません。pip install -U 'bitsandbytes>=0.50' で更新するか、別の optimizer.kind を使ってください。",
    "run.device is {device}; of several processes each finds its own: say auto, cpu or cuda.": "run.device が {device} です。複数プロセスでは各プロセスが自動で選ぶため、auto、cpu、cuda のどれかにしてください。",
    "process {rank}: another training process is gone ({why}). Start all of them again; the run goes on from its last checkpoint.": "プロセス {rank}: ほかの学習プロセスが終了しました({why})。すべて起動し直してください。最後のチェックポイントから続きます。",
    "Weights & Biases has no account here (`wandb login`), so this run is recorded offline; later `wandb sync {path}/offline-run-*` sends it.": "Weights & Biases にログインしていないため(`wandb login`)、オフラインで記録します。あとで `wandb sync {path}/offline-run-*` で送信できます。",
    "{name} failed and is switched off ({why}). The training is not affected.": "{name} でエラーが起きたため無効にしました({why})。学習には影響ありません。",
    "previews are drawn at the end alone: each time they take about {each}, and the run about {run}. run.preview_every = {every} draws them on the way as well.": "プレビューは最後にだけ描きます(1 回に約 {each}、学習は約 {run})。run.preview_every = {every} で途中でも描きます。",
    "--steps and --epochs are two ways to name a new total: give one of them.": "--steps と --epochs はどちらも新しい合計の指定です。片方だけ指定してください。",
    "--{name} is {value}; it is a new total, at least 1.": "--{name} が {value} です。新しい合計を 1 以上で指定してください。",
    "the identifier {word} is an ordinary word: what the base knows by it gets in the way, and is lost. {reason}": "識別語 {word} はふつうの単語です。ベースモデルがその語で知っているものが学習の妨げになり、失われます。{reason}",
    "the identifier {word} is {count} tokens to this base ({shown}), which may mean something of their own; one rare token is learned more easily. {reason}": "識別語 {word} はこのベースモデルでは {count} トークン({shown})になり、それぞれが別の意味を持つことがあります。珍しい 1 トークンの語のほうが学習しやすくなります。{reason}",
    "`konomi identifiers --base BASE` lists words that are one token and mean nothing yet.": "`konomi identifiers --base BASE` で、1 トークンでまだ意味を持たない語の一覧が出ます。",
    # Encoding.
    "The text encoder turns the caption {caption} into NaN or infinity. Try run.precision = 'fp32'; if it stays, the base is damaged.": "テキストエンコーダがキャプション {caption} を NaN か無限大にします。run.precision = 'fp32' を試してください。それでも直らない場合は、ベースモデルが壊れています。",
    "{name}: the VAE turns this image into NaN or infinity. Look at the image; if others fail too, the VAE needs float32 (run.precision = 'fp32') or is damaged.": "{name}: VAE がこの画像を NaN か無限大にします。画像を確認してください。ほかの画像でも起きる場合は、VAE に float32(run.precision = 'fp32')が必要か、VAE が壊れています。",
    "{name}: no memory to encode a single image. Lower data.resolution, or free the device's memory.": "{name}: 画像 1 枚をエンコードするメモリもありません。data.resolution を下げるか、デバイスのメモリを空けてください。",
    "1 image has": "1 枚の画像",
    "{count} images have": "{count} 枚の画像",
    "{subject} changed since being encoded; encoded again.": "{subject}がエンコード後に変更されたため、もう一度エンコードします。",
    "A damaged cache file was removed and its content is made again. {why}": "壊れたキャッシュファイルを削除し、作り直します。{why}",
    "{path}: not a cache file of this version.": "{path}: この版のキャッシュファイルではありません。",
    "{path}: the image index is damaged ({why}); it is built again, which reads every image once": "{path}: 画像の索引が壊れています({why})。作り直すため、すべての画像を一度読み込みます",
    # Buckets.
    "data.buckets.step is {step}; it must be a multiple of {grid}. Use {near}.": "data.buckets.step が {step} です。{grid} の倍数でなければなりません。{near} にしてください。",
}  # fmt: skip
