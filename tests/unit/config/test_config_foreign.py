"""Settings of other trainers become recipes, and each field is taken over or named."""

import json

import pytest

from konomi.cli.main import main
from konomi.config.foreign import import_settings, imported_recipe
from konomi.config.foreign.ai_toolkit import TABLE as AI_TOOLKIT
from konomi.config.foreign.onetrainer import TABLE as ONETRAINER
from konomi.config.foreign.sd_scripts import TABLE as SD_SCRIPTS
from konomi.config.foreign.table import To
from konomi.config.schema import recipe_settings
from konomi.errors import RecipeError
from konomi.methods import METHODS
from konomi.tasks.recipes import METHOD_CONFIGS, read_recipe

COMMAND = """accelerate launch --num_cpu_threads_per_process 1 train_network.py \\
  --pretrained_model_name_or_path=/models/base.safetensors --train_data_dir "img" --reg_data_dir reg --output_dir out
  --output_name sks --network_module networks.lora --network_dim 32 --network_alpha 16 --network_args
  conv_dim=8 algo=lora --resolution 512,768 --train_batch_size 2 --gradient_accumulation_steps 4 --learning_rate 1e-4
  --unet_lr 2e-4 --text_encoder_lr 5e-5 --lr_scheduler cosine_with_restarts --lr_warmup_steps 100
  --optimizer_type AdamW8bit --optimizer_args weight_decay=0.1 betas=0.9,0.99 --max_train_epochs 10
  --max_train_steps 500 --mixed_precision bf16 --min_snr_gamma 5 --clip_skip 2 --max_timestep 1000 --xformers
  --shuffle_caption --keep_tokens 1 --color_aug --cache_latents --save_every_n_epochs 2 --bucket_no_upscale
  --flux_thing 3"""


def recipe_of(source, tmp_path):
    found = import_settings(source, METHOD_CONFIGS)
    file = tmp_path / "made.toml"
    file.write_text(imported_recipe(found, "x"), encoding="utf-8")
    return found, read_recipe(file)


@pytest.mark.parametrize("table", [SD_SCRIPTS, ONETRAINER, AI_TOOLKIT])
def test_every_setting_that_a_table_names_exists(table):
    known = {setting.path for method in METHODS for setting in recipe_settings(method.config_type)}
    assert {entry.setting for entry in table.values() if isinstance(entry, To)} <= known


def test_a_command_line_of_sd_scripts(tmp_path):
    found, recipe = recipe_of(COMMAND, tmp_path)
    method = recipe.method
    assert (method.kind, method.rank, method.alpha, method.text_rank, method.conv_rank) == ("lora", 32, 16, 32, 8)
    assert recipe.base == "/models/base.safetensors"
    assert [source.role for source in recipe.data.sources] == ["train", "prior"]
    assert recipe.data.resolution == "512x768"
    assert (recipe.run.batch_size, recipe.memory.accumulation) == (8, 4)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.text_learning_rate) == (2e-4, 5e-5)
    assert (recipe.optimizer.kind, recipe.optimizer.schedule) == ("adamw8bit", "cosine_restarts")
    assert (recipe.optimizer.weight_decay, recipe.optimizer.betas) == (0.1, (0.9, 0.99))
    assert (recipe.run.epochs, recipe.run.steps, recipe.run.precision) == (10, 0, "bf16")
    assert (recipe.objective.weighting, recipe.objective.max_timestep) == ("min_snr", 999)
    assert not recipe.data.buckets.upscale and recipe.data.captions.shuffle
    left = "\n".join(found.left)
    expected = ("xformers", "color_aug", "flux_thing", "algo", "cache_latents", "max_train_steps")
    assert all(name in left for name in expected)


def test_every_flag_of_a_command_line_is_accounted_for():
    found = import_settings(COMMAND, METHOD_CONFIGS)
    said = "\n".join((*found.taken, *found.left))
    flags = [word[2:].partition("=")[0] for word in COMMAND.split() if word.startswith("--")]
    # The first is the launcher's own; the arguments in the last two are named one by one.
    assert [flag for flag in flags[1:] if flag not in said] == ["network_module", "network_args", "optimizer_args"]


def test_sd_scripts_own_defaults_where_they_differ(tmp_path):
    _, recipe = recipe_of("python sdxl_train_network.py --network_dim=8 --network_train_unet_only", tmp_path)
    assert (recipe.method.rank, recipe.method.alpha, recipe.method.text_rank) == (8, 1.0, 0)


def test_sd_scripts_toml_with_sections(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('[a]\npretrained_model_name_or_path = "m.ckpt"\n[b]\nlearning_rate = 5e-6\nxformers = true\n')
    found, recipe = recipe_of(str(file), tmp_path)
    assert (recipe.method.kind, recipe.optimizer.learning_rate) == ("full", 5e-6)
    assert any(line.startswith("xformers") for line in found.left)


def test_a_preset_of_onetrainer(tmp_path):
    preset = {
        "training_method": "LORA", "base_model_name": "owner/name", "resolution": "512", "batch_size": 4, "epochs": 20,
        "learning_rate": 3e-4, "lora_rank": 16, "lora_alpha": 1.0, "train_dtype": "BFLOAT_16", "ema": "OFF",
        "ema_decay": 0.999, "text_encoder": {"train": True, "learning_rate": 1e-4}, "unet": {"learning_rate": 2e-4},
        "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01, "fused": False, "beta1": 0.9, "beta2": 0.999},
        "max_noising_strength": 1.0, "embedding": {"token_count": 2}, "something_new": 3, "save_every": 5,
        "concepts": [{"path": "photos", "balancing": 3.0, "image": {"x": 1}}], "save_every_unit": "EPOCH",
    }  # fmt: skip
    file = tmp_path / "preset.json"
    file.write_text(json.dumps(preset))
    found, recipe = recipe_of(str(file), tmp_path)
    assert (recipe.method.rank, recipe.method.alpha, recipe.method.text_rank) == (16, 1.0, 16)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.ema_decay, recipe.run.precision) == (2e-4, 0.0, "bf16")
    assert (recipe.run.save_every_epochs, recipe.data.sources[0].repeats, recipe.objective.max_timestep) == (5, 3, 999)
    left = "\n".join(found.left)
    expected = ("something_new", "embedding.token_count", "optimizer.fused", "concepts.image")
    assert all(name in left for name in expected)


AI_TOOLKIT_YAML = """
job: extension
config:
  name: my_lora
  process:
    - type: sd_trainer
      training_folder: output
      trigger_word: sks
      network: {type: lora, linear: 16, linear_alpha: 8}
      save: {dtype: float16, save_every: 250}
      datasets:
        - {folder_path: photos, caption_ext: txt, caption_dropout_rate: 0.05, resolution: [512, 768], num_repeats: 2}
      train: {batch_size: 1, steps: 2000, gradient_accumulation_steps: 2, optimizer: adamw8bit, lr: 1e-4, dtype: bf16}
      model: {name_or_path: owner/sdxl, is_xl: true}
      sample: {prompts: [a, b], width: 1024, height: 1024}
"""


def test_a_configuration_of_ai_toolkit(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(AI_TOOLKIT_YAML)
    found, recipe = recipe_of(str(file), tmp_path)
    assert (recipe.method.rank, recipe.method.alpha, recipe.run.steps) == (16, 8, 2000)
    assert (recipe.run.batch_size, recipe.memory.accumulation, recipe.optimizer.learning_rate) == (2, 2, 1e-4)
    source = recipe.data.sources[0]
    assert (source.trigger, source.repeats, recipe.data.captions.dropout) == ("sks", 2, 0.05)
    assert (recipe.data.resolution, recipe.preview.prompts) == ("768", ("a", "b"))
    assert any("datasets.resolution" in line for line in found.left)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", AI_TOOLKIT_YAML.replace("is_xl", "is_flux"), "not this family"),
        ("b.yaml", "a: &x [1]\nb: *x\n", "aliases"),
        ("c.json", "[1]", "no table"),
        ("d.json", "{", "cannot be read"),
        ("e.toml", "[[datasets]]\nresolution = 512\n", "data set"),
        ("f.json", "[" * 100_000, "cannot be read"),
        ("g.yaml", "a: [", "cannot be read"),
    ],
)
def test_strange_settings_are_one_line(name, text, says, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=says) as caught:
        import_settings(str(tmp_path / name), METHOD_CONFIGS)
    assert "\n" not in str(caught.value)


def test_new_says_what_is_not_taken_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "--from", "accelerate launch train_network.py --network_dim 4 --xformers", "-o", "r.toml"]) == 0
    heard = capsys.readouterr()
    assert "not taken over: xformers" in heard.err and "Next: konomi check r.toml" in heard.out
    assert read_recipe("r.toml").method.rank == 4
    assert "xformers" in (tmp_path / "r.toml").read_text()
