"""``ivideogpt migrate``: official commands become ours, and nothing of them is lost without a word."""

import json
import re
import shlex
from pathlib import Path

import pytest

from ivideogpt.cli import COMMANDS, main
from ivideogpt.commands.arguments import assign, parse_command
from ivideogpt.commands.migrate import differences, read_commands, replacements
from ivideogpt.configs.official import OFFICIAL, official_script
from ivideogpt.configs.registry import find_preset

SCRIPTS = Path(__file__).parents[2] / "../shared/data/official_scripts.json"
TOKENIZER = """accelerate launch train_tokenizer.py \\
    --exp_name bair_tokenizer_ft --output_dir log_vqgan --seed 0 --mixed_precision bf16 \\
    --model_type ctx_vqgan \\
    --train_batch_size 16 --gradient_accumulation_steps 1 --disc_start 1000005 \\
    --oxe_data_mixes_type bair --resolution 64 --dataloader_num_workers 16 \\
    --rand_select --video_stepsize 1 --segment_horizon 16 --segment_length 8 --context_length 1 \\
    --pretrained_model_name_or_path pretrained_models/ivideogpt-oxe-64-act-free/tokenizer \\
    --max_train_steps 200005
"""
TRANSFORMER = """
# the transformer
accelerate launch train_gpt.py \\
    --exp_name bair_llama_ft --output_dir log_trm --seed 0 --mixed_precision bf16 \\
    --vqgan_type ctx_vqgan \\
    --pretrained_model_name_or_path {log directory of finetuned tokenizer}/unwrapped_model \\
    --config_name configs/llama/config.json --load_internal_llm --action_conditioned --action_dim 4 \\
    --pretrained_transformer_path pretrained_models/ivideogpt-oxe-64-act-free/transformer \\
    --per_device_train_batch_size 16 --gradient_accumulation_steps 1 \\
    --learning_rate 1e-4 --lr_scheduler_type cosine \\
    --oxe_data_mixes_type bair --resolution 64 --dataloader_num_workers 16 \\
    --video_stepsize 1 --segment_length 16 --context_length 1 \\
    --use_eval_dataset --use_fvd --use_frame_metrics \\
    --weight_decay 0.01 --llama_attn_drop 0.1 --embed_no_wd --max_train_steps 100005
"""
PLACEHOLDER = "{log directory of finetuned tokenizer}"


@pytest.fixture
def migrated(capsys):
    """``migrated(words, ...)``: the words of each command that is printed, and the comments."""

    def run(*words):
        assert main(["migrate", *map(str, words)]) == 0
        printed = capsys.readouterr().out
        lines = printed.replace("\\\n", " ").splitlines()
        commands = [shlex.split(line) for line in lines if line and not line.startswith("#")]
        return commands, [line.removeprefix("# ") for line in lines if line.startswith("#")]

    return run


def settings_of(words):
    """The settings among the words of a command of ours, by name."""
    pairs = [word.split("=", 1) for word in words if re.match(r"[a-z]\w*(\.\w+)*=", word)]
    own = ("run", "task", "num_train_frames", "seed", "demo", "model")
    return {name: value for name, value in pairs if name not in own}


def understood(words):
    """The call that the command line makes of the words of a command of ours."""
    command = COMMANDS[words[1]]
    return parse_command(command.load(), words[2:], "ivideogpt", command.settings_loader())


def option(words, name):
    return words[words.index(name) + 1]


def test_an_official_command_becomes_a_preset_without_settings(migrated):
    ((words,), notes) = migrated("--", *shlex.split(TOKENIZER.replace("\\\n", " ")))
    assert words[:3] == ["ivideogpt", "train-tokenizer", "official-bair-64-act-free"]
    assert option(words, "--data") == "stores/bair_robot_pushing" and "--mixture" not in words
    assert option(words, "--run") == "log_vqgan/bair_tokenizer_ft"
    assert option(words, "--init") == "pretrained_models/ivideogpt-oxe-64-act-free/tokenizer"
    assert (option(words, "--workers"), option(words, "--precision")) == ("16", "bfloat16")
    assert not settings_of(words) and "--seed" not in words
    assert any(note.startswith("--model_type is gone: ") for note in notes)


def test_a_script_becomes_all_its_commands(migrated, tmp_path):
    (tmp_path / "bair.sh").write_text(f"cd somewhere\n{TOKENIZER}\n{TRANSFORMER}")
    (first, second), notes = migrated(f"bash {tmp_path}/bair.sh")
    assert first[1:3] == ["train-tokenizer", "official-bair-64-act-free"]
    assert second[1:3] == ["train-transformer", "official-bair-64-act-cond"] and not settings_of(second)
    assert option(second, "--tokenizer") == "log_vqgan/bair_tokenizer_ft"
    assert option(second, "--init") == "pretrained_models/ivideogpt-oxe-64-act-free"
    assert any(note.startswith("--load_internal_llm is gone: ") for note in notes)


@pytest.mark.parametrize("name", OFFICIAL)
def test_each_official_script_becomes_its_preset(name, migrated):
    if not SCRIPTS.exists():
        pytest.skip(f"{SCRIPTS} is not here")
    for command in json.loads(SCRIPTS.read_text())[official_script(name)]:
        flags = {flag: value for flag, value in command.items() if flag != "program"}
        pasted = [f"--{flag}" if value is True else f"--{flag}={value}" for flag, value in flags.items()]
        ((words,), _) = migrated("--", "accelerate", "launch", command["program"], *pasted)
        assert not settings_of(words)
        if command["program"] == "train_gpt.py":
            assert words[1:3] == ["train-transformer", name]
        else:
            assert words[1] == "train-tokenizer"
            assert find_preset(words[2]).tokenizer == find_preset(name).tokenizer


@pytest.mark.parametrize("script", ["bair-64-act-cond", "bair-64-act-free", "robonet-64-act-cond"])
def test_evaluation_scripts_become_a_protocol(script, migrated):
    if not SCRIPTS.exists():
        pytest.skip(f"{SCRIPTS} is not here")
    (command,) = json.loads(SCRIPTS.read_text())[f"scripts/evaluation/{script}.sh"]
    flags = {flag: value for flag, value in command.items() if flag != "program"}
    pasted = [f"--{flag}" if value is True else f"--{flag}={value}" for flag, value in flags.items()]
    ((words,), notes) = migrated("--", "python", "train_gpt.py", *pasted)
    assert words[1:3] == ["evaluate", f"pretrained_models/ivideogpt-{script}"]
    assert option(words, "--protocol") == script.partition("-")[0]
    assert "--samples" not in words and "--horizon" not in words  # the protocol says them
    assert any("--per_device_train_batch_size" in note for note in notes)


def test_an_evaluation_that_is_no_protocol_says_what_differs(migrated):
    pasted = "--eval_only --pretrained_transformer_path a/transformer --pretrained_model_name_or_path a/tokenizer"
    more = "--oxe_data_mixes_type bair --segment_length 30 --eval_generate_times 4 --use_fvd"
    ((words,), _) = migrated("--", "python", "train_gpt.py", *pasted.split(), *more.split())
    assert (option(words, "--samples"), option(words, "--horizon")) == ("4", "29")
    assert option(words, "--i3d").endswith("i3d_torchscript.pt") and option(words, "--metrics") == "video,tokens"


def test_amuseds_vqgan_is_a_start_of_its_own_kind(migrated):
    pasted = "--resolution 256 --context_length 2 --rand_select --pretrained_model_name_or_path models/amused/vqvae"
    ((words,), _) = migrated("--", "python", "train_tokenizer.py", *pasted.split())
    assert option(words, "--vqgan") == "models/amused/vqvae" and "--init" not in words


def test_a_discriminator_keeps_its_rate_and_its_schedule(migrated):
    pasted = "--resolution 64 --rand_select --learning_rate 3e-4 --discr_lr_scheduler cosine --lr_scheduler constant"
    ((words,), notes) = migrated("--", "python", "train_tokenizer.py", *pasted.split())
    training = assign(find_preset(words[2]), settings_of(words)).tokenizer
    assert (training.learning_rate, training.discriminator_learning_rate) == (3e-4, 1e-4)
    assert (training.schedule, training.discriminator_schedule) == ("constant", "cosine")
    assert any("both warm up alike" in note for note in notes)


def test_what_differs_is_set_and_the_settings_say_what_the_flags_said(migrated):
    pasted = "--resolution 64 --rand_select --learning_rate 3e-4 --strong_aug --selected_params --disc_start 7"
    ((words,), _) = migrated("--gpus", 2, "--", "python", "train_tokenizer.py", *pasted.split())
    recipe = assign(find_preset(words[2]), settings_of(words))
    assert recipe.tokenizer.learning_rate == 3e-4 and recipe.tokenizer.codes == "frozen"
    assert recipe.tokenizer.batch_size == 32 and recipe.tokenizer.loss.discriminator_start == 4
    assert recipe.augmentation_of("tokenizer").hue == 0.5
    (official,) = read_commands(f"python train_tokenizer.py {pasted}")
    settings = replacements(official, official.given(gpus=2))
    settings = {name: value for name, value in settings.items() if not name.startswith("--")}
    assert differences(recipe, "tokenizer", settings) == {}


def test_adapters_are_set_only_where_they_were_asked_for(migrated):
    pasted = "--pretrained_model_name_or_path t --pretrained_transformer_path p --lora_r 16 --lora_dropout 0.1"
    ((with_lora,), _), ((without,), _) = (
        migrated("--", "python", "train_gpt.py", *pasted.split(), *more) for more in (("--lora",), ())
    )
    assert {"transformer.lora.rank=16", "transformer.lora.dropout=0.1"} < set(with_lora)
    assert not [word for word in without if "lora" in word]


def test_flags_that_were_not_typed_count_at_their_official_defaults(migrated):
    ((words,), _) = migrated("--", "accelerate", "launch", "train_gpt.py", "--pretrained_model_name_or_path", "t")
    settings = settings_of(words)
    assert settings["transformer.schedule"] == "constant" and settings["transformer.learning_rate"] == "5e-05"
    assert settings["transformer.clip_frames"] == "2" and settings["transformer.batch_size"] == "32"


@pytest.mark.parametrize(
    ("official", "said"), [("wandb", "--tracker wandb"), ("comet_ml", "tensorboard, wandb, trackio or none")]
)
def test_curves_go_where_they_went_or_it_says_so(official, said, capsys):
    assert main(["migrate", f"python train_tokenizer.py --resolution 64 --report_to {official}"]) == 0
    assert said in capsys.readouterr().out


def test_several_processes_are_started_by_torchrun(migrated):
    pasted = TOKENIZER.replace("launch", "launch --num_processes 8").replace("\\\n", " ")
    ((words,), _) = migrated(f"CUDA_VISIBLE_DEVICES=0,1 NCCL_DEBUG=INFO {pasted}")
    start = " ".join(words[: words.index("train-tokenizer")])
    assert start == "CUDA_VISIBLE_DEVICES=0,1 NCCL_DEBUG=INFO torchrun --nproc-per-node 8 -m ivideogpt"
    assert "--run" not in words and "run=log_vqgan/bair_tokenizer_ft" in words
    assert "tokenizer.batch_size=128" in words


def test_one_process_without_a_launcher_means_one_gpu(migrated):
    ((words,), _) = migrated("--", *shlex.split(TOKENIZER.replace("accelerate launch", "python").replace("\\\n", " ")))
    assert words[0] == "ivideogpt" and "tokenizer.batch_size=16" in words


def test_predict_becomes_predict(migrated):
    pasted = "--pretrained_model_name_or_path thuml/a --input_path a.npz --dataset_name bair_robot_pushing"
    ((words,), _) = migrated("--", "python", "inference/predict.py", *pasted.split(), "--context_length", "1")
    assert " ".join(words) == (
        "ivideogpt predict thuml/a --input a.npz --dataset-name bair_robot_pushing --context-frames 1 --repeat 5"
    )


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        (
            "oxe_data_converter.py --dataset_name bridge --input_path a",
            "convert oxe bridge a stores/bridge",
        ),
        ("preprocess_bair.py --input_path a --save_path b --save_gif", "convert bair a stores/bair_robot_pushing"),
        ("preprocess_robonet.py --hdf5_path a --save_path b", "convert robonet a stores/tfds_robonet"),
        (
            "preprocess_vp2.py --dir_path a/robodesk",
            "convert vp2 robodesk a/robodesk stores/vp2_robodesk",
        ),
    ],
)
def test_converters_become_convert(official, ours, migrated):
    ((words,), notes) = migrated("--", "python", *f"datasets/{official}".split())
    assert " ".join(words) == f"ivideogpt {ours}"
    assert "where training reads it" in "".join(notes) or "save_path" not in official


EVALUATION = """accelerate launch train_gpt.py --eval_only --exp_name bair_eval --oxe_data_mixes_type bair \\
    --pretrained_model_name_or_path {tokenizer}/unwrapped_model \\
    --pretrained_transformer_path log_trm/2024-05-01-bair_llama_ft/unwrapped_model/transformer"""


def test_each_command_of_a_sequence_reads_what_the_one_before_wrote(migrated, tmp_path):
    converter = "python datasets/preprocess_bair.py --input_path tfds --save_path preprocessed_data/bair"
    script = tmp_path / "all.sh"
    script.write_text("\n".join((converter, TOKENIZER, TRANSFORMER, EVALUATION)))
    (converted, tokenizer, transformer, evaluated), _ = migrated(str(script))
    assert converted[-1] == option(tokenizer, "--data") == option(transformer, "--data") == option(evaluated, "--data")
    assert option(transformer, "--tokenizer") == option(tokenizer, "--run") == "log_vqgan/bair_tokenizer_ft"
    assert evaluated[1:3] == ["evaluate", option(transformer, "--run")]


def test_a_path_of_another_run_is_left_as_it_is(migrated, tmp_path):
    (tmp_path / "all.sh").write_text(f"{TOKENIZER}\n{TRANSFORMER.replace(PLACEHOLDER, 'log_vqgan/older')}")
    (_, transformer), _ = migrated(str(tmp_path / "all.sh"))
    assert option(transformer, "--tokenizer") == "log_vqgan/older/unwrapped_model"


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        # Typed for the task that the official program has as its default, and for its default number of frames.
        ("mbpo.py", "mbrl official task=coffee_push num_train_frames=260002 seed=1"),
        (
            "mbpo.py task=plate_slide num_train_frames=100002 demo=true seed=3 exp_name=a",
            "mbrl official task=plate_slide num_train_frames=100002 demo=true seed=3 run=runs/a",
        ),
        (
            "drq.py task=hammer num_train_frames=1000",
            "mbrl official --no-imagination task=hammer num_train_frames=1000 seed=1",
        ),
        (
            "mbpo.py task=hammer world_model.pretrained_transformer_path=models/m/transformer",
            "mbrl official task=hammer num_train_frames=260002 seed=1 model=models/m",
        ),
        (
            "mbpo.py task=hammer world_model.load_pretrained_model=false",
            "mbrl official task=hammer num_train_frames=260002 seed=1 model=none",
        ),
    ],
)
def test_reinforcement_learning_becomes_the_official_preset(official, ours, migrated):
    ((words,), _) = migrated("--", "python", *f"mbrl/train_metaworld_{official}".split())
    assert " ".join(words) == f"ivideogpt {ours}"


def test_keys_of_reinforcement_learning_become_settings_in_steps(migrated):
    keys = (
        "gen_every_steps=400 update_tokenizer_every_step=0 stddev_schedule=linear(0.5,0.2,1000) gen_batch=8 "
        "succ_bonus=0 lr=3e-4"
    )
    ((words,), notes) = migrated("--", "python", "mbrl/train_metaworld_mbpo.py", *keys.split())
    settings = settings_of(words)
    assert json.loads(settings.pop("environment_options")) == {"action_repeat": 2, "success_bonus": 0.0}
    assert settings == {
        "imagination.every_steps": "200",
        "world_model.tokenizer_update_every_steps": "0",
        "agent.exploration_noise_start": "0.5",
        "agent.exploration_noise_end": "0.2",
        "agent.exploration_decay_steps": "500",
        "imagination.parallel_episodes": "8",
        "agent.learning_rate": "0.0003",
    }
    assert callable(understood(words))
    assert {note.partition(":")[0] for note in notes} <= {word.partition("=")[0] for word in keys.split()}


def test_keys_of_reinforcement_learning_without_a_counterpart_say_why(migrated):
    (_, notes) = migrated("--", "python", "mbrl/train_metaworld_mbpo.py", "update_gen_times=2", "start_mbpo=100")
    assert "update_gen_times is gone: one update each time" in "".join(notes)
    assert "start_mbpo is gone" in "".join(notes)


@pytest.mark.parametrize("pasted", [TOKENIZER, TRANSFORMER])
def test_what_is_printed_is_understood_by_the_command_line(pasted, migrated):
    ((words,), _) = migrated(pasted)
    assert callable(understood(words))


@pytest.mark.parametrize(
    ("pasted", "said"),
    [
        ("python train_gpt.py --segment_lenght 3", "did you mean 'segment_length'?"),
        ("python train_gpt.py --segment_length three", "'three'; expected a whole number"),
        ("python train_gpt.py --segment_length", "--segment_length: expected one argument"),
        ("python train_gpt.py --eval_only=yes", "--eval_only: ignored explicit argument 'yes'"),
        ("python train_gpt.py 3", "takes no '3'"),
        ("python train_gtp.py", "no official program; did you mean 'train_gpt.py'?"),
        ("python mbrl/train_metaworld_mbpo.py gen_horizn=5", "did you mean 'gen_horizon'?"),
        ("python mbrl/train_metaworld_mbpo.py --demo", "takes no '--demo'; expected keys, such as"),
        ("python mbrl/train_metaworld_mbpo.py demo=yes", "demo is 'yes'; expected true or false"),
        ("python mbrl/train_metaworld_mbpo.py gen_horizon=ten", "gen_horizon is 'ten'; expected a whole number"),
        ("python mbrl/train_metaworld_mbpo.py stddev_schedule=slow", "expected a number or linear(start,end,frames)"),
        ("pip install ivideogpt", "no official program in it"),
        ("bash scripts/finetune/bair-64-act-cond.sh", "the preset official-bair-64-act-cond"),
        ("python train_tokenizer.py --resolution 128", "for 64 and 256"),
        ("python train_tokenizer.py --resolution 64 --oxe_data_mixes_type selekt", "did you mean 'select'?"),
        ("python train_tokenizer.py --resolution 64 --lr_scheduler linear", "'linear', which is not here"),
        ("python train_gpt.py --pretrained_model_name_or_path a --config_name b.json", "config.json or config_medium"),
        ("python train_gpt.py --exp_name 'a", "cannot be read"),
        ("accelerate launch --num_processes x train_gpt.py", "number of processes"),
    ],
)
def test_what_cannot_be_migrated_is_one_sentence(pasted, said, capsys):
    assert main(["migrate", pasted]) == 2
    assert said in capsys.readouterr().err


def test_run_refuses_what_is_not_filled_in(capsys):
    assert main(["migrate", "--run", TRANSFORMER]) == 2
    assert "{log_directory_of_finetuned_tokenizer} stands for something" in capsys.readouterr().err


def test_run_runs_the_command_and_gives_its_exit_code(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pasted = "CUDA_VISIBLE_DEVICES= python datasets/preprocess_bair.py --input_path nowhere --save_path out"
    assert main(["migrate", "--run", "--", *pasted.split()]) == 2
    assert not (tmp_path / "out").exists()
