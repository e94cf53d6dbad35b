"""What a run leaves behind: losses of single images, branches, recipe cards."""

PAIRS = {
    "the losses of single images in the checkpoint are damaged (they are not four columns of one length). Remove that checkpoint to go back to the one before.": "チェックポイントの画像ごとの損失の記録が壊れています(同じ長さの 4 列になっていません)。そのチェックポイントを削除すると、1 つ前に戻れます。",
}
