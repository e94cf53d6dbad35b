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
  --pretrained_model_name_or_path=/models/base.safetensors --train_data_dir "img" --reg_data_dir reg
  --output_dir out
  --output_name sks --network_module networks.lora --network_dim 32 --network_alpha 16
  --network_args
  conv_dim=8 algo=lora --resolution 512,768 --train_batch_size 2 --gradient_accumulation_steps 4
  --learning_rate 1e-4
  --unet_lr 2e-4 --text_encoder_lr 5e-5 --lr_scheduler cosine_with_restarts --lr_warmup_steps 100
  --optimizer_type AdamW8bit --optimizer_args weight_decay=0.1 betas=0.9,0.99 --max_train_epochs 10
  --max_train_steps 500 --mixed_precision bf16 --min_snr_gamma 5 --clip_skip 2 --max_timestep 1000
  --xformers
  --shuffle_caption --keep_tokens 1 --color_aug --cache_latents --save_every_n_epochs 2
  --bucket_no_upscale
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
    assert (method.kind, method.rank, method.alpha, method.text_rank, method.conv_rank) == (
        "lora",
        32,
        16,
        32,
        8,
    )
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
    expected = ("xformers", "color_aug", "flux_thing", "cache_latents", "max_train_steps")
    assert all(name in left for name in expected)


def test_every_flag_of_a_command_line_is_accounted_for():
    found = import_settings(COMMAND, METHOD_CONFIGS)
    said = "\n".join((*found.taken, *found.left))
    flags = [word[2:].partition("=")[0] for word in COMMAND.split() if word.startswith("--")]
    # The first is the launcher's own; the arguments in the last two are named one by one.
    assert [flag for flag in flags[1:] if flag not in said] == [
        "network_module",
        "network_args",
        "optimizer_args",
    ]


def test_sd_scripts_own_defaults_where_they_differ(tmp_path):
    _, recipe = recipe_of(
        "python sdxl_train_network.py --network_dim=8 --network_train_unet_only", tmp_path
    )
    assert (recipe.method.rank, recipe.method.alpha, recipe.method.text_rank) == (8, 1.0, 0)


LORA = (
    'network_module = "networks.lora"\nnetwork_dim = 4\nlearning_rate = 1e-4\ntrain_data_dir = '
    '"img"\n'
)
FULL = 'learning_rate = 1e-5\ntrain_data_dir = "img"\n'


@pytest.mark.parametrize(
    ("start", "line", "setting", "value"),
    [
        (LORA, 'vae = "vae.safetensors"', "vae", "vae.safetensors"),
        (LORA, "v_parameterization = true", "prediction", "v_prediction"),
        (LORA, "v_parameterization = false", "prediction", "auto"),
        (LORA, "save_every_n_epochs = 2", "run.save_every_epochs", 2),
        (LORA, "weighted_captions = true", "text.emphasis", True),
        (LORA, "alpha_mask = true", "data.images.alpha", "mask"),
        (LORA, "masked_loss = false", "objective.masked", False),
        (LORA, "torch_compile = true", "memory.compile", True),
        (LORA, 'sample_sampler = "k_euler_a"', "preview.sampler", "euler_a"),
        (LORA, 'log_with = "all"', "run.trackers", ("tensorboard", "wandb")),
        (LORA, "random_crop = true", "data.cache.latents", "off"),
        (LORA, "enable_bucket = false", "data.buckets.kind", "fixed"),
        (LORA, "", "data.buckets.kind", "fixed"),
        (LORA, "enable_bucket = true", "data.buckets.kind", "area"),
        (LORA, "", "run.steps", 1600),
        (LORA, "epoch = 7", "run.epochs", 7),
        (LORA, "", "optimizer.text_learning_rate", 1e-4),
        (LORA, "text_encoder_lr = 1e-5", "optimizer.text_learning_rate", 1e-5),
        (LORA, 'network_args = ["conv_dim=8"]', "method.conv_alpha", 1.0),
        (
            LORA,
            'network_args = ["down_lr_weight=0,0,0,0.1,1,1,1,1,1", "mid_lr_weight=2,2,2",'
            ' "block_lr_zero_threshold=0.2"]',
            "method.blocks.rate_factors",
            {f"IN{i:02d}": float(i > 3) for i in range(9)} | {"M00": 2.0},
        ),
        (
            LORA,
            f'network_args = ["block_dims={",".join("2" * 25)}", "conv_block_dims=1,2"]',
            "method.blocks.ranks",
            {f"{name}{i:02d}": 2 for name in ("IN", "OUT") for i in range(12)} | {"M00": 2},
        ),
        (LORA, 'dim_from_weights = true\nnetwork_weights = "x.safetensors"', "method.rank", 16),
        (LORA, "min_snr_gamma = 0", "objective.weighting", "none"),
        (FULL, "train_text_encoder = true", "method.text_encoder", True),
        (FULL, 'save_model_as = "diffusers"', "save.format", "diffusers"),
    ],
)
def test_a_field_of_sd_scripts_means_the_same(start, line, setting, value, tmp_path):
    (tmp_path / "config.toml").write_text(start + line)
    _, recipe = recipe_of(str(tmp_path / "config.toml"), tmp_path)
    found = recipe
    for name in setting.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("cache_latents = false", "konomi caches them in any case"),
        ("save_state = false", "run.keep_checkpoints"),
        ("xformers = false\nflip_aug = false\nzero_terminal_snr = false", ""),
        ("network_dim = 5000", "at most 1024"),
        ("noise_offset = 3.0\nmin_timestep = 5000", "min_timestep"),
        ('network_args = ["algo=loha"]\nscale_weight_norms = 1.0', ""),
        ('network_args = ["algo=diag-oft"]', "algo"),
        ("sample_every_n_epochs = 1", "counted in steps"),
        ('network_args = ["up_lr_weight=sine+.25"]', "is a curve"),
        ('network_args = ["conv_block_dims=1,2"]', "2 numbers; konomi reads lists of 25 or 19"),
    ],
)
def test_what_does_not_fit_is_named_and_no_reason_to_refuse_the_rest(line, named, tmp_path):
    text = LORA.replace("network_dim = 4\n", "") if "network_dim" in line else LORA
    (tmp_path / "config.toml").write_text(text + line)
    found, _ = recipe_of(str(tmp_path / "config.toml"), tmp_path)
    assert any(named in line for line in found.left) if named else not found.left


def test_a_command_line_that_names_a_file_takes_its_settings(tmp_path):
    (tmp_path / "config.toml").write_text(LORA + "seed = 7\nmax_train_steps = 50")
    command = f"accelerate launch train_network.py --config_file {tmp_path}/config.toml --seed 9"
    _, recipe = recipe_of(command, tmp_path)
    assert (recipe.method.kind, recipe.method.rank, recipe.run.steps, recipe.run.seed) == (
        "lora",
        4,
        50,
        9,
    )
    with pytest.raises(RecipeError, match="cannot be read"):
        import_settings(
            "accelerate launch train_network.py --config_file gone.toml", METHOD_CONFIGS
        )


def test_sd_scripts_toml_with_sections(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(
        '[a]\npretrained_model_name_or_path = "m.ckpt"\n'
        "[b]\nlearning_rate = 5e-6\nxformers = true\n"
    )
    found, recipe = recipe_of(str(file), tmp_path)
    assert (recipe.method.kind, recipe.optimizer.learning_rate) == ("full", 5e-6)
    assert any(line.startswith("xformers") for line in found.left)


def test_a_preset_of_onetrainer(tmp_path):
    preset = {
        "training_method": "LORA", "base_model_name": "owner/name", "resolution": "512",
        "batch_size": 4, "epochs": 20,
        "learning_rate": 3e-4, "lora_rank": 16, "lora_alpha": 1.0, "train_dtype": "BFLOAT_16",
        "ema": "OFF",
        "ema_decay": 0.999, "text_encoder": {"train": True, "learning_rate": 1e-4},
        "unet": {"learning_rate": 2e-4},
        "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01, "fused": False, "beta1": 0.9,
        "beta2": 0.999},
        "max_noising_strength": 1.0, "embedding": {"token_count": 2}, "something_new": 3,
        "save_every": 5,
        "concepts": [{"path": "photos", "balancing": 3.0, "image": {"x": 1}}],
        "save_every_unit": "EPOCH",
    }  # fmt: skip
    file = tmp_path / "preset.json"
    file.write_text(json.dumps(preset))
    found, recipe = recipe_of(str(file), tmp_path)
    assert (recipe.method.rank, recipe.method.alpha, recipe.method.text_rank) == (16, 1.0, 16)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.ema_decay, recipe.run.precision) == (
        2e-4,
        0.0,
        "bf16",
    )
    assert (
        recipe.run.save_every_epochs,
        recipe.data.sources[0].repeats,
        recipe.objective.max_timestep,
    ) == (5, 3, 999)
    left = "\n".join(found.left)
    expected = ("something_new", "embedding.token_count", "optimizer.fused", "concepts.image")
    assert all(name in left for name in expected)


@pytest.mark.parametrize(
    ("fields", "setting", "value"),
    [
        ({"vae": {"model_name": "owner/vae"}}, "vae", "owner/vae"),
        ({"force_v_prediction": True}, "prediction", "v_prediction"),
        ({"aspect_ratio_bucketing": False}, "data.buckets.kind", "fixed"),
        ({"latent_caching": False}, "data.cache.latents", "off"),
        ({"sample_after": 50, "sample_after_unit": "STEP"}, "run.preview_every", 50),
        ({"backup_after": 30, "backup_after_unit": "STEP"}, "run.checkpoint_every", 30),
        (
            {"validation": True, "validate_after": 20, "validate_after_unit": "STEP"},
            "run.validate_every",
            20,
        ),
        (
            {"validation": False, "validate_after": 20, "validate_after_unit": "STEP"},
            "run.validate_every",
            0,
        ),
        ({"mse_strength": 0.0, "mae_strength": 1.0}, "objective.loss", "l1"),
        ({"masked_training": False}, "objective.masked", False),
        (
            {"concepts": [{"path": "p", "image": {"enable_random_flip": True}}]},
            "data.images.flip",
            True,
        ),
        (
            {"training_method": "FINE_TUNE", "text_encoder": {"train": True}},
            "method.text_encoder",
            True,
        ),
    ],
)
def test_a_field_of_onetrainer_means_the_same(fields, setting, value, tmp_path):
    (tmp_path / "preset.json").write_text(
        json.dumps({"training_method": "LORA", "base_model_name": "owner/name"} | fields)
    )
    found, recipe = recipe_of(str(tmp_path / "preset.json"), tmp_path)
    for name in setting.split("."):
        recipe = getattr(recipe, name)
    assert recipe == value and not found.left


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
        - {folder_path: photos, caption_ext: txt, caption_dropout_rate: 0.05,
           resolution: [512, 768], num_repeats: 2}
      train: {batch_size: 1, steps: 2000, gradient_accumulation_steps: 2, optimizer: adamw8bit,
              lr: 1e-4, dtype: bf16}
      model: {name_or_path: owner/sdxl, is_xl: true}
      sample: {prompts: [a, b], width: 1024, height: 1024}
"""


def test_a_configuration_of_ai_toolkit(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(AI_TOOLKIT_YAML)
    found, recipe = recipe_of(str(file), tmp_path)
    assert (recipe.method.rank, recipe.method.alpha, recipe.run.steps) == (16, 8, 2000)
    assert (recipe.run.batch_size, recipe.memory.accumulation, recipe.optimizer.learning_rate) == (
        2,
        2,
        1e-4,
    )
    source = recipe.data.sources[0]
    assert (source.trigger, source.repeats, recipe.data.captions.dropout) == ("sks", 2, 0.05)
    assert (recipe.data.resolution, recipe.preview.prompts) == ("768", ("a", "b"))
    assert any("datasets.resolution" in line for line in found.left)


def test_more_of_ai_toolkit(tmp_path):
    text = AI_TOOLKIT_YAML.replace("type: lora,", "type: lokr, rank_dropout: 0.1,").replace(
        "is_xl: true", "is_v_pred: true, vae_path: owner/vae"
    )
    text = text.replace(
        "lr: 1e-4", "lr: 1e-4, disable_sampling: true, loss_type: mae, min_snr_gamma: 0"
    )
    text = text.replace(
        "num_repeats: 2}",
        "num_repeats: 2}\n        - {folder_path: more, caption_dropout_rate: 0.1}",
    )
    (tmp_path / "config.yaml").write_text(text)
    found, recipe = recipe_of(str(tmp_path / "config.yaml"), tmp_path)
    assert (recipe.vae, recipe.prediction, recipe.method.rank_dropout) == (
        "owner/vae",
        "v_prediction",
        0.1,
    )
    assert (recipe.run.preview_every, recipe.objective.loss, recipe.objective.weighting) == (
        0,
        "l1",
        "none",
    )
    assert recipe.data.captions.dropout == 0.05 and len(recipe.data.sources) == 2
    left = "\n".join(found.left)
    assert "'lokr': konomi trains" in left and "the first one's" in left


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
    assert (
        main(
            [
                "new",
                "--from",
                "accelerate launch train_network.py --network_dim 4 --xformers",
                "-o",
                "r.toml",
            ]
        )
        == 0
    )
    heard = capsys.readouterr()
    assert "not imported: xformers" in heard.err and "Next: konomi check r.toml" in heard.out
    assert read_recipe("r.toml").method.rank == 4
    assert "xformers" in (tmp_path / "r.toml").read_text()
