"""Every key of the official configuration of reinforcement learning, and what takes its place here.

Source: thuml/iVideoGPT mbrl/cfgs/mbpo_config.yaml, names and defaults.
"""

from __future__ import annotations

from collections.abc import Mapping

from ivideogpt.configs.migration_table import Flag, Value

_FRAMES = "counted in frames there, in steps here"
_ALWAYS = "always so"

#: Default, what takes its place as a setting of ``ivideogpt mbrl`` ("" where it is gone), and a note.
_KEYS: Mapping[str, tuple[Value, str, str]] = {
    "task": ("coffee_push", "task", ""),
    "task_name": ("coffee_push", "task", ""),
    "num_train_frames": (260_002, "num_train_frames", ""),
    "num_seed_frames": (4000, "random_steps", f"with `agent.num_expl_steps`; {_FRAMES}"),
    "frame_stack": (3, "frame_stack", ""),
    "action_repeat": (2, "action_repeat", 'and `environment_options={"action_repeat": N}`'),
    "discount": (0.99, "agent.discount", ""),
    "stddev_schedule": (
        "linear(1.0,0.1,100000)",
        "agent.exploration_noise_start",
        f"with `agent.exploration_noise_end` and `agent.exploration_decay_steps`; {_FRAMES}",
    ),
    "eval_every_frames": (2000, "evaluate_every_steps", _FRAMES),
    "num_eval_episodes": (20, "evaluation_episodes", ""),
    "save_snapshot": (True, "", "checkpoints are always written (`save_every_steps`)"),
    "replay_buffer_size": (1_000_000, "replay_capacity", ""),
    "replay_buffer_num_workers": (1, "", "batches come from memory"),
    "nstep": (3, "agent.n_step", ""),
    "batch_size": (256, "agent.batch_size", ""),
    "demo_path_prefix": (None, "demos", "a folder"),
    "demo": (False, "demo", ""),
    "seed": (1, "seed", ""),
    "device": ("cuda", "device", ""),
    "save_video": (True, "", "pictures are always written"),
    "save_train_video": (False, "", "a GIF of each evaluation is written"),
    "use_tb": (True, "", "`metrics.jsonl` and `ivideogpt mbrl plot`"),
    "experiment": ("exp", "run", "the folder"),
    "exp_name": ("mbpo", "run", "the folder"),
    "lr": (1e-4, "agent.learning_rate", ""),
    "feature_dim": (50, "agent.feature_size", ""),
    "camera": ("corner", "", "the corner camera is the one there is"),
    "duration": (100, "environment_options", '`{"steps": N}`'),
    "succ_bonus": (10.0, "environment_options", '`{"success_bonus": X}`'),
    "agent_update_times": (2, "agent_updates_per_step", ""),
    "agent.critic_target_tau": (0.01, "agent.target_update_rate", ""),
    "agent.update_every_steps": (1, "agent_updates_per_step", "updates each step"),
    "agent.num_expl_steps": (2000, "random_steps", ""),
    "agent.hidden_dim": (1024, "agent.hidden_size", ""),
    "agent.stddev_clip": (0.3, "agent.learning_noise_clip", ""),
    "agent.beta": (0.0, "", "it fails there where it is not 0"),
    "agent.delay_steps": (1, "", "the actor learns in every update"),
    "gen_every_steps": (200, "imagination.every_steps", _FRAMES),
    "gen_batch": (32, "imagination.parallel_episodes", ""),
    "gen_horizon": (10, "imagination.horizon", ""),
    "update_gen_every_step": (10, "world_model.update_every_steps", _FRAMES),
    "update_tokenizer_every_step": (40, "world_model.tokenizer_update_every_steps", _FRAMES),
    "update_gen_times": (1, "", "one update each time; give a shorter `world_model.update_every_steps`"),
    "init_update_gen_steps": (1000, "world_model.initial_updates", ""),
    "init_gen_times": (20, "imagination.initial_rollouts", ""),
    "real_ratio": (0.5, "imagination.real_share", ""),
    "start_mbpo": (4000, "random_steps", "imagination begins with the agent's updates"),
    "world_model.load_pretrained_model": (True, "model", "`none`: a new one"),
    "world_model.config_name": (None, "", "a checkpoint says its shape itself"),
    "world_model.vqgan_type": ("ctx_vqgan", "", "a checkpoint says its shape itself"),
    "world_model.pretrained_model_name_or_path": (None, "model", "one folder holds tokenizer and transformer"),
    "world_model.pretrained_transformer_path": (None, "model", "one folder holds tokenizer and transformer"),
    "world_model.load_internal_llm": (True, "", _ALWAYS),
    "world_model.llama_attn_drop": (0.1, "", "that of the checkpoint"),
    "world_model.fast_reward_predictor": (False, "", "not used there either"),
    "world_model.symlog": (True, "", "new reward heads use it; others say so themselves"),
    "world_model.context_length": (2, "", "that of the checkpoint"),
    "world_model.segment_length": (12, "world_model.segment_frames", ""),
    "world_model.action_dim": (4, "", "the environment's"),
    "world_model.batch_size": (16, "world_model.batch_size", ""),
    "world_model.selected_params": (True, "", "codes stay as they are: always so"),
    "world_model.tok_lr": (1e-4, "world_model.tokenizer_learning_rate", ""),
    "world_model.tok_wd": (0.0, "world_model.weight_decay", "of both"),
    "world_model.tok_beta1": (0.9, "", "0.9"),
    "world_model.tok_beta2": (0.999, "", "0.999"),
    "world_model.max_grad_norm": (1.0, "world_model.max_grad_norm", ""),
    "world_model.max_target_frames": (5, "world_model.tokenizer_future_frames", ""),
    "world_model.model_lr": (1e-4, "world_model.learning_rate", ""),
    "world_model.model_wd": (0.0, "world_model.weight_decay", "of both"),
    "world_model.embed_no_wd": (True, "", _ALWAYS),
    "world_model.reward_lr": (1e-4, "", "not used there either"),
    "world_model.reward_wd": (1e-6, "", "not used there either"),
    "world_model.reward_weight": (1.0, "world_model.reward_weight", ""),
}
#: Every key.
MBRL_KEYS: Mapping[str, Flag] = {
    name: Flag(name, default, ours and f"`{ours}=...`", note, setting=ours)
    for name, (default, ours, note) in _KEYS.items()
}
#: Official programs that take keys, name=value, instead of flags, and what follows ``ivideogpt``.
MBRL_PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "mbrl/train_metaworld_mbpo.py": ("mbrl", "official"),
    "mbrl/train_metaworld_drq.py": ("mbrl", "official", "--no-imagination"),
}
