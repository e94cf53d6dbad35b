"""Scores of pictures, the networks that they are computed by, and what they say."""

PAIRS = {
    "{source}: knows no texts, so it cannot say how well a prompt is followed. Take a CLIP, SigLIP or SigLIP 2.": "{source}: テキストを読めないので、プロンプトへの忠実さを測れません。CLIP、SigLIP、SigLIP 2 のいずれかを使ってください。",
    "{source}: no folder of a network to compare pictures by. Give tiny, a folder with config.json, or a hub id owner/name.": "{source}: 画像を比べるネットワークのフォルダではありません。tiny、config.json のあるフォルダ、ハブの ID(owner/name)のいずれかを指定してください。",
    "network to compare pictures by": "画像を比べるネットワーク",
    "{source}: is of type {kind}. Pictures are compared by CLIP, SigLIP, SigLIP 2 (of a fixed size), DINO, DINOv2 or DINOv3.": "{source}: 種類が {kind} です。画像を比べるには CLIP、SigLIP、SigLIP 2(固定サイズ)、DINO、DINOv2、DINOv3 のいずれかが必要です。",
    "{source}: {count} tensors of the network are missing or misshapen, first {name}.": "{source}: ネットワークのテンソル {count} 個がないか、形状が異なります(最初は {name})。",
    "{source}: the config describes no network that can be built ({why}).": "{source}: 設定ファイルからネットワークを構築できません({why})。",
    "{source}: its tokenizer cannot be read ({why}). It needs a tokenizer.json beside the weights.": "{source}: トークナイザを読めません({why})。重みと同じ場所に tokenizer.json が必要です。",
    "{path}: its sizes, colours or filter cannot be read ({why}). Take the file that belongs to the model.": "{path}: サイズ、色、フィルタの設定を読めません({why})。モデルに付属するファイルを使ってください。",
    "Likeness to the subject": "被写体への近さ",
    "Likeness to the subject, by the encoder of texts": "被写体への近さ(テキスト用エンコーダによる)",
    "Prompt following": "プロンプトへの忠実さ",
    "Drift from the base": "ベースモデルからのずれ",
    "Likeness of the class alone to the subject": "クラスだけの画像の、被写体への近さ",
    "The subject without being called": "呼ばれていない被写体の出現",
    "copies training pictures ({copies} of {count})": "学習画像の写しを描きます({count} 枚中 {copies} 枚)",
    "the subject comes without being called (nearer by {moved}, at most {allowed})": "呼ばれていない被写体が現れます(近づきが {moved}、上限 {allowed})",
    "changes other pictures ({drift}, at most {allowed})": "ほかの画像まで変わります({drift}、上限 {allowed})",
    "is no nearer to the subject than the base": "被写体への近さがベースモデルと変わりません",
}
